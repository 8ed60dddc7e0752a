//! A network namespace for a worker, joined by a veth pair that can drop packets silently.
//!
//! A direction is cut by a wrong MAC address in the sender's neighbour table: packets arrive, and
//! the receiving kernel drops them. This needs neither a firewall nor a kernel module, and can cut
//! one direction alone.

use std::{
    path::Path,
    process::{self, Command},
};

use crate::{
    etcd_server::skip,
    support::{Process, program},
};

/// A prefix of the block reserved for network benchmarks (RFC 2544).
const NETWORK: &str = "198.18.213";
/// A MAC address that no interface has.
const WRONG_MAC: &str = "02:00:00:00:00:99";

/// A network namespace. It is removed with its veth pair when dropped.
pub struct Namespace {
    name: String,
    /// The interfaces of the veth pair: in this namespace, and in the worker's.
    ends: [CableEnd; 2],
}

struct CableEnd {
    device: String,
    address: String,
    mac: String,
}

/// Directions in which packets are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Into the namespace.
    To,
    /// Out of the namespace.
    From,
    /// Both directions.
    Both,
}

impl Namespace {
    /// Creates a namespace. Reports a skipped test and returns `None` where that is not permitted.
    #[track_caller]
    pub fn new() -> Option<Self> {
        let name = format!("stoker{}", process::id());
        if let Err(why) = ip(&["netns", "add", &name]) {
            skip::absent("a network namespace", format_args!("run as root on Linux ({why})"));
            return None;
        }
        let end = |host: u8| CableEnd {
            device: format!("stk{}-{host}", process::id() % 1_000_000),
            address: format!("{NETWORK}.{host}"),
            mac: format!("02:00:00:00:01:{host:02x}"),
        };
        let namespace = Self { name, ends: [end(1), end(2)] };
        namespace.connect().unwrap();
        Some(namespace)
    }

    fn connect(&self) -> Result<(), String> {
        let [here, there] = &self.ends;
        let cable = ["link", "add", &here.device, "address", &here.mac, "type", "veth"];
        let peer = ["peer", "name", &there.device, "address", &there.mac, "netns", &self.name];
        ip(&[&cable[..], &peer].concat())?;
        for (inside, own, other) in [(false, here, there), (true, there, here)] {
            let subnet = format!("{}/30", own.address);
            self.ip(inside, &["address", "add", &subnet, "dev", &own.device])?;
            self.ip(inside, &["link", "set", &own.device, "up"])?;
            self.set_neighbour(inside, own, &other.address, &other.mac)?;
        }
        ip(&["-n", &self.name, "link", "set", "lo", "up"])
    }

    /// Starts a worker in the namespace. To the worker, its router is on another host.
    pub fn worker(&self, arguments: &[&str]) -> Process {
        let listen = format!("{}:0", self.ends[1].address);
        let worker = program("stoker-worker");
        let mut command = Command::new(ip_program());
        command.env_clear().args(["netns", "exec", &self.name]).arg(worker.get_program());
        command.args(arguments).args([
            "--listen",
            &listen,
            "--allow-plaintext",
            "--accept-routing",
            "any",
        ]);
        Process::spawn(command)
    }

    /// Drops packets in the given directions from now on.
    pub fn cut(&self, which: Cut) {
        self.set_cut(which != Cut::From, which != Cut::To);
    }

    /// Stops dropping packets.
    pub fn heal(&self) {
        self.set_cut(false, false);
    }

    fn set_cut(&self, to: bool, from: bool) {
        let [here, there] = &self.ends;
        let mac =
            |end: &CableEnd, wrong: bool| if wrong { WRONG_MAC.into() } else { end.mac.clone() };
        self.set_neighbour(false, here, &there.address, &mac(there, to)).unwrap();
        self.set_neighbour(true, there, &here.address, &mac(here, from)).unwrap();
    }

    /// Sets the MAC address that `end` sends packets for `address` to.
    fn set_neighbour(
        &self,
        inside: bool,
        end: &CableEnd,
        address: &str,
        mac: &str,
    ) -> Result<(), String> {
        let entry = ["neighbour", "replace", address, "lladdr", mac];
        self.ip(inside, &[&entry[..], &["dev", &end.device, "nud", "permanent"]].concat())
    }

    fn ip(&self, inside: bool, arguments: &[&str]) -> Result<(), String> {
        if inside { ip(&[&["-n", &self.name], arguments].concat()) } else { ip(arguments) }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The kernel removes a namespace asynchronously; the next one uses the same device names.
        let _ = ip(&["link", "del", &self.ends[0].device]);
        let _ = ip(&["netns", "del", &self.name]);
    }
}

fn ip_program() -> &'static str {
    ["/usr/sbin/ip", "/sbin/ip"].into_iter().find(|path| Path::new(path).exists()).unwrap_or("ip")
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(ip_program()).args(arguments).output();
    let output = output.map_err(|error| format!("ip: {error}; install iproute2"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

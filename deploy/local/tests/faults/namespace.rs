//! A network namespace of its own for a worker, and a cable to it that loses packets without a word.
//!
//! A cable is cut by telling one end a wrong hardware address of the other one: what is sent arrives, and the
//! kernel there drops it. This takes neither a firewall nor a kernel module, and cuts one way alone.

use std::{
    path::Path,
    process::{self, Command},
};

use crate::{
    etcd_server::skip,
    support::{Process, program},
};

/// Of the block that is set aside for tests of networks.
const NETWORK: &str = "198.18.213";
/// Nobody's.
const WRONG: &str = "02:00:00:00:00:99";

/// Removed with its cable when it is dropped.
pub struct Namespace {
    name: String,
    /// The cable's ends: here, and in the namespace.
    ends: [End; 2],
}

struct End {
    device: String,
    address: String,
    hardware: String,
}

/// What does not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// What is sent into the namespace.
    To,
    /// What is sent out of it.
    From,
    /// Either.
    Both,
}

impl Namespace {
    /// Makes a namespace; `None`, reported, where that is not permitted.
    #[track_caller]
    pub fn new() -> Option<Self> {
        let name = format!("stoker{}", process::id());
        if let Err(why) = ip(&["netns", "add", &name]) {
            skip::absent("a network namespace", format_args!("run as root on Linux ({why})"));
            return None;
        }
        let end = |host: u8| End {
            device: format!("stk{}-{host}", process::id() % 1_000_000),
            address: format!("{NETWORK}.{host}"),
            hardware: format!("02:00:00:00:01:{host:02x}"),
        };
        let namespace = Self { name, ends: [end(1), end(2)] };
        namespace.wire().unwrap();
        Some(namespace)
    }

    fn wire(&self) -> Result<(), String> {
        let [here, there] = &self.ends;
        let cable = ["link", "add", &here.device, "address", &here.hardware, "type", "veth"];
        let peer = ["peer", "name", &there.device, "address", &there.hardware, "netns", &self.name];
        ip(&[&cable[..], &peer].concat())?;
        for (inside, own, other) in [(false, here, there), (true, there, here)] {
            let subnet = format!("{}/30", own.address);
            self.ip(inside, &["address", "add", &subnet, "dev", &own.device])?;
            self.ip(inside, &["link", "set", &own.device, "up"])?;
            self.know(inside, own, &other.address, &other.hardware)?;
        }
        ip(&["-n", &self.name, "link", "set", "lo", "up"])
    }

    /// Starts a worker in it. Its router is on another host.
    pub fn worker(&self, arguments: &[&str]) -> Process {
        let listen = format!("{}:0", self.ends[1].address);
        let worker = program("stoker-worker");
        let mut command = Command::new(ip_program());
        command.env_clear().args(["netns", "exec", &self.name]).arg(worker.get_program());
        command.args(arguments).args(["--listen", &listen, "--accept-routing", "any"]);
        Process::spawn(command)
    }

    /// Loses packets from now on.
    pub fn cut(&self, which: Cut) {
        self.set(which != Cut::From, which != Cut::To);
    }

    /// Loses none any more.
    pub fn heal(&self) {
        self.set(false, false);
    }

    fn set(&self, to: bool, from: bool) {
        let [here, there] = &self.ends;
        let hardware =
            |end: &End, wrong: bool| if wrong { WRONG.into() } else { end.hardware.clone() };
        self.know(false, here, &there.address, &hardware(there, to)).unwrap();
        self.know(true, there, &here.address, &hardware(here, from)).unwrap();
    }

    /// Tells `end` where to send what is for `address`.
    fn know(&self, inside: bool, end: &End, address: &str, hardware: &str) -> Result<(), String> {
        let entry = ["neighbour", "replace", address, "lladdr", hardware];
        self.ip(inside, &[&entry[..], &["dev", &end.device, "nud", "permanent"]].concat())
    }

    fn ip(&self, inside: bool, arguments: &[&str]) -> Result<(), String> {
        if inside { ip(&[&["-n", &self.name], arguments].concat()) } else { ip(arguments) }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A namespace goes when the kernel has time for it; the next one wants the same names at once.
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

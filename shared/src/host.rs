//! This machine or pod: its name, the address at which others reach it, and its limit on open files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

/// Name of a host that has none.
const UNNAMED: &str = "localhost";
/// Addresses that are never assigned (RFC 5737, RFC 3849): the route to them is the default route.
const OUTWARD: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 9),
];

/// Returns the name of this host; in a container, that of the container or pod.
pub fn name() -> String {
    let system = rustix::system::uname();
    let name = system.nodename().to_string_lossy();
    // Linux reports `(none)` until a name has been set.
    if name.is_empty() || name == "(none)" { UNNAMED.to_owned() } else { name.into_owned() }
}

/// Raises the soft limit on open files to the hard limit, and returns the effective limit.
pub fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Fails on systems whose actual limit is lower, which then stays in effect.
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Returns the address from which this host reaches others, IPv4 first, or only IPv4. `None` on a
/// host that has only a loopback interface.
pub fn outward_address(only_ipv4: bool) -> Option<IpAddr> {
    // Connecting a UDP socket sends no packet: the kernel looks up the route and its source.
    let routed = OUTWARD.iter().filter_map(|outward| {
        let unspecified: IpAddr = match outward {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((unspecified, 0)).ok()?;
        socket.connect(outward).ok()?;
        Some(socket.local_addr().ok()?.ip())
    });
    first(routed, only_ipv4).or_else(|| {
        // Without a default route, the name of a host usually resolves to its address.
        let mut named: Vec<_> = (name().as_str(), 0).to_socket_addrs().ok()?.collect();
        named.sort_by_key(SocketAddr::is_ipv6);
        first(named.into_iter().map(|address| address.ip()), only_ipv4)
    })
}

/// Returns the first address that another host can dial.
fn first(mut addresses: impl Iterator<Item = IpAddr>, only_ipv4: bool) -> Option<IpAddr> {
    addresses.find(|address| {
        let dialable = match address {
            IpAddr::V4(address) => !address.is_link_local(),
            // A link-local address needs the number of an interface, which differs between hosts.
            IpAddr::V6(address) => !only_ipv4 && !address.is_unicast_link_local(),
        };
        dialable && !address.is_loopback() && !address.is_unspecified()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_host_has_a_name_that_is_a_valid_worker_id() {
        assert!(crate::validate::name(&name()).is_ok(), "{}", name());
    }

    #[test]
    fn only_addresses_that_others_can_dial_are_returned() {
        let parse = |text: &str| text.parse::<IpAddr>().unwrap();
        let all = ["0.0.0.0", "127.0.1.1", "169.254.1.1", "::", "::1", "fe80::1", "fd00::1"];
        let found = |addresses: &[&str], only_ipv4| {
            first(addresses.iter().map(|text| parse(text)), only_ipv4)
        };
        assert_eq!(found(&all, false), Some(parse("fd00::1")));
        assert_eq!(found(&all, true), None);
        assert_eq!(found(&["fd00::1", "10.0.0.7"], true), Some(parse("10.0.0.7")));
    }

    #[test]
    fn the_address_of_this_host_can_be_bound() {
        // Some machines for tests have only a loopback interface.
        let Some(address) = outward_address(false) else { return };
        assert!(!address.is_loopback() && !address.is_unspecified(), "{address}");
        UdpSocket::bind((address, 0)).unwrap();
    }
}

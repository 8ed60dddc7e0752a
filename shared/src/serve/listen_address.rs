//! The address that a server listens on, in the syntax of a flag: `HOST:PORT`, or `:PORT` for every
//! interface.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// Maximum length of a host name in DNS, in bytes.
const MAX_NAME_LENGTH: usize = 253;

/// An address to listen on. A name is resolved when it is bound, not when it is parsed. Port 0
/// selects any free port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenAddress {
    pub(super) host: Host,
    pub(super) port: u16,
}

/// The part before the port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    /// Every interface, with IPv6 and IPv4 if the machine has both.
    AllInterfaces,
    /// One address, with the port of the listen address.
    Address(SocketAddr),
    /// A host name to resolve.
    Name(String),
}

/// The text is not a valid listen address. Every message ends with the syntax.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}; write HOST:PORT, for instance 127.0.0.1:50051, localhost:50051 or [::1]:50051, or :50051 for every \
     interface"
)]
pub struct NotAListenAddress(InvalidAddress);

/// Why a listen address is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum InvalidAddress {
    /// The text is empty.
    #[error("the address is empty")]
    Empty,
    /// The text is a URL.
    #[error("this is a URL; leave out `{0}://` and everything after the port")]
    Scheme(String),
    /// A host without a port.
    #[error("the port is missing")]
    NoPort,
    /// An invalid port.
    #[error("the port `{0}` is not a number from 0 to 65535 (0 selects any free port)")]
    Port(String),
    /// Empty brackets.
    #[error("the host is empty")]
    NoHost,
    /// An IPv6 address without brackets, which is ambiguous with a port.
    #[error("an IPv6 address needs brackets, as in [::1]:50051")]
    Unbracketed,
    /// Brackets around text that is not an IPv6 address.
    #[error("`{0}` is not an IPv6 address")]
    NotIpv6(String),
    /// Digits and dots that are not an address, for instance 127.1 or 300.0.0.1.
    #[error("`{0}` is not an IPv4 address")]
    NotIpv4(String),
    /// Text that is not a valid host name.
    #[error("`{0}` is not the name of a host")]
    NotAName(String),
}

impl ListenAddress {
    /// Returns the address, as host:port, at which a process on the same host reaches a server that
    /// listens on this one. `None` for port 0, whose real port only the server knows.
    pub fn local_endpoint(&self) -> Option<String> {
        let host = match &self.host {
            _ if self.port == 0 => return None,
            // A socket for all interfaces accepts IPv4 on every machine.
            Host::AllInterfaces => Ipv4Addr::LOCALHOST.into(),
            Host::Address(address) if address.ip().is_unspecified() => match address.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            },
            Host::Address(address) => return Some(address.to_string()),
            Host::Name(name) => return Some(format!("{name}:{}", self.port)),
        };
        Some(SocketAddr::new(host, self.port).to_string())
    }
}

impl FromStr for ListenAddress {
    type Err = NotAListenAddress;

    fn from_str(text: &str) -> Result<Self, NotAListenAddress> {
        parse(text).map_err(NotAListenAddress)
    }
}

fn parse(text: &str) -> Result<ListenAddress, InvalidAddress> {
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(InvalidAddress::Scheme(scheme.to_owned()));
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => bracketed(rest)?,
        None => plain(text)?,
    };
    let number = match port {
        "" => return Err(InvalidAddress::NoPort),
        // Checked because `parse` also accepts `+80`.
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
        _ => None,
    };
    let port = number.ok_or_else(|| InvalidAddress::Port(port.to_owned()))?;
    let host = match host {
        Host::Address(mut address) => {
            address.set_port(port);
            Host::Address(address)
        }
        other => other,
    };
    Ok(ListenAddress { host, port })
}

/// Parses the text after an opening bracket. A scope, as in `[fe80::1%2]:50051`, is the number of
/// an interface.
fn bracketed(rest: &str) -> Result<(Host, &str), InvalidAddress> {
    let not_ipv6 = || InvalidAddress::NotIpv6(rest.to_owned());
    let (inside, after) = rest.split_once(']').ok_or_else(not_ipv6)?;
    if inside.is_empty() {
        return Err(InvalidAddress::NoHost);
    }
    let address = format!("[{inside}]:0").parse::<SocketAddr>();
    let address = address.map_err(|_| InvalidAddress::NotIpv6(inside.to_owned()))?;
    match after.strip_prefix(':') {
        Some(port) => Ok((Host::Address(address), port)),
        None if after.is_empty() => Err(InvalidAddress::NoPort),
        None => Err(not_ipv6()),
    }
}

fn plain(text: &str) -> Result<(Host, &str), InvalidAddress> {
    if text.is_empty() {
        return Err(InvalidAddress::Empty);
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        // A bare number may be meant as a port, so it is not reported as an invalid host.
        return Err(InvalidAddress::NoPort);
    };
    if host.is_empty() {
        return Ok((Host::AllInterfaces, port));
    }
    if text.parse::<Ipv6Addr>().is_ok() || host.parse::<Ipv6Addr>().is_ok() {
        return Err(InvalidAddress::Unbracketed);
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return Ok((Host::Address(SocketAddr::new(address.into(), 0)), port));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if host.len() > MAX_NAME_LENGTH || !host.bytes().all(allowed) {
        return Err(InvalidAddress::NotAName(host.to_owned()));
    }
    // Resolvers accept 127.1 and 0x7f000001 as addresses, which are more likely mistakes.
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x") {
        return Err(InvalidAddress::NotIpv4(host.to_owned()));
    }
    Ok((Host::Name(host.to_owned()), port))
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::AllInterfaces => write!(f, ":{}", self.port),
            Host::Address(address) => address.fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self { host: Host::Address(address), port: address.port() }
    }
}

impl<I: Into<IpAddr>> From<(I, u16)> for ListenAddress {
    fn from(address: (I, u16)) -> Self {
        SocketAddr::from(address).into()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn addresses_names_and_all_interfaces_are_parsed() {
        for (text, host) in [
            (":50051", Host::AllInterfaces),
            ("localhost:50051", Host::Name("localhost".into())),
            ("worker-0.stoker.svc:50051", Host::Name("worker-0.stoker.svc".into())),
            ("127.0.0.1:50051", Host::Address("127.0.0.1:50051".parse().unwrap())),
            ("0.0.0.0:50051", Host::Address("0.0.0.0:50051".parse().unwrap())),
            ("[::1]:50051", Host::Address("[::1]:50051".parse().unwrap())),
            ("[::]:50051", Host::Address("[::]:50051".parse().unwrap())),
            ("[fe80::1%2]:50051", Host::Address("[fe80::1%2]:50051".parse().unwrap())),
        ] {
            let address: ListenAddress = text.parse().unwrap();
            assert_eq!(address, ListenAddress { host, port: 50051 }, "{text}");
            assert_eq!(address.to_string(), text);
        }
        for (text, port) in [(":0", 0), ("localhost:65535", 65535), ("127.0.0.1:0", 0)] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().port, port);
        }
    }

    #[test]
    fn a_server_is_reached_on_loopback_if_it_listens_on_every_interface() {
        for (text, endpoint) in [
            (":7", Some("127.0.0.1:7")),
            ("0.0.0.0:7", Some("127.0.0.1:7")),
            ("[::]:7", Some("[::1]:7")),
            ("10.0.0.1:7", Some("10.0.0.1:7")),
            ("worker-0:7", Some("worker-0:7")),
            (":0", None),
            ("localhost:0", None),
        ] {
            let address: ListenAddress = text.parse().unwrap();
            assert_eq!(address.local_endpoint().as_deref(), endpoint, "{text}");
        }
    }

    #[test]
    fn errors_name_the_cause_and_the_syntax() {
        let long = format!("{}:1", "a".repeat(MAX_NAME_LENGTH + 1));
        for (text, what) in [
            ("", "the address is empty"),
            ("localhost", "the port is missing"),
            ("127.0.0.1", "the port is missing"),
            ("localhost:", "the port is missing"),
            (":", "the port is missing"),
            ("[::1]", "the port is missing"),
            ("50051", "the port is missing"),
            ("[]:50051", "the host is empty"),
            ("127.0.0.1:65536", "the port `65536` is not a number"),
            ("localhost:http", "the port `http` is not a number"),
            ("localhost:+1", "the port `+1` is not a number"),
            ("localhost:50051/metrics", "the port `50051/metrics` is not a number"),
            ("127.0.0.1:-1", "the port `-1` is not a number"),
            ("::1:50051", "needs brackets"),
            ("::1", "needs brackets"),
            ("fe80::1:2:50051", "needs brackets"),
            ("http://localhost:50051", "this is a URL; leave out `http://`"),
            ("[localhost]:50051", "`localhost` is not an IPv6 address"),
            ("[::1]50051", "is not an IPv6 address"),
            ("[::1:50051", "is not an IPv6 address"),
            ("127.1:50051", "`127.1` is not an IPv4 address"),
            ("300.0.0.1:50051", "`300.0.0.1` is not an IPv4 address"),
            ("*:50051", "`*` is not the name of a host"),
            ("a b:50051", "`a b` is not the name of a host"),
            ("me@host:50051", "`me@host` is not the name of a host"),
            (&long, "is not the name of a host"),
        ] {
            let error = text.parse::<ListenAddress>().unwrap_err().to_string();
            assert!(error.contains(what), "{text:?}: {error}");
            assert!(error.contains("; write HOST:PORT, for instance"), "{text:?}: {error}");
        }
    }
}

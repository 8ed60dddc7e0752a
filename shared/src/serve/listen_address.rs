//! Where a server listens, as an operator writes it: `HOST:PORT`, or `:PORT` for every interface.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// The longest host name that DNS knows, in bytes.
const LONGEST_NAME: usize = 253;

/// An address to listen on. Names are resolved when it is bound, not here. Port 0 takes any free port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenAddress {
    pub(super) host: Host,
    pub(super) port: u16,
}

/// The part before the port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    /// Every interface, with IPv6 and IPv4 where the machine has both.
    Every,
    /// One address. Its port counts, and is that of the whole.
    Address(SocketAddr),
    /// What the resolver makes of this name.
    Name(String),
}

/// Text that is no address to listen on. Every message ends with how to write one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}; write HOST:PORT, for instance 127.0.0.1:50051, localhost:50051 or [::1]:50051, or :50051 for every \
     interface"
)]
pub struct NotAListenAddress(Wrong);

/// What is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Wrong {
    /// Nothing is there.
    #[error("the address is empty")]
    Empty,
    /// A URL.
    #[error("this is a URL; leave out `{0}://` and whatever follows the port")]
    Scheme(String),
    /// A host alone.
    #[error("the port is missing")]
    NoPort,
    /// A port that is none.
    #[error("the port `{0}` is not a number from 0, which takes any free one, to 65535")]
    Port(String),
    /// Brackets with nothing inside.
    #[error("the host is empty")]
    NoHost,
    /// IPv6 without brackets, where the port cannot be separated from the address.
    #[error("an IPv6 address needs brackets, as in [::1]:50051")]
    Unbracketed,
    /// Brackets around something else.
    #[error("`{0}` is not an IPv6 address")]
    NotIpv6(String),
    /// Digits and dots that are no address, as 127.1 or 300.0.0.1.
    #[error("`{0}` is not an IPv4 address")]
    NotIpv4(String),
    /// What no host can be called.
    #[error("`{0}` is not the name of a host")]
    NotAName(String),
}

impl FromStr for ListenAddress {
    type Err = NotAListenAddress;

    fn from_str(text: &str) -> Result<Self, NotAListenAddress> {
        parse(text).map_err(NotAListenAddress)
    }
}

fn parse(text: &str) -> Result<ListenAddress, Wrong> {
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(Wrong::Scheme(scheme.to_owned()));
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => bracketed(rest)?,
        None => plain(text)?,
    };
    let number = match port {
        "" => return Err(Wrong::NoPort),
        // Not what `parse` alone takes, which is `+80` too.
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
        _ => None,
    };
    let port = number.ok_or_else(|| Wrong::Port(port.to_owned()))?;
    let host = match host {
        Host::Address(mut address) => {
            address.set_port(port);
            Host::Address(address)
        }
        other => other,
    };
    Ok(ListenAddress { host, port })
}

/// Splits what follows an opening bracket. A scope, as in `[fe80::1%2]:50051`, is the number of an interface.
fn bracketed(rest: &str) -> Result<(Host, &str), Wrong> {
    let not_ipv6 = || Wrong::NotIpv6(rest.to_owned());
    let (inside, after) = rest.split_once(']').ok_or_else(not_ipv6)?;
    if inside.is_empty() {
        return Err(Wrong::NoHost);
    }
    let address = format!("[{inside}]:0").parse::<SocketAddr>();
    let address = address.map_err(|_| Wrong::NotIpv6(inside.to_owned()))?;
    match after.strip_prefix(':') {
        Some(port) => Ok((Host::Address(address), port)),
        None if after.is_empty() => Err(Wrong::NoPort),
        None => Err(not_ipv6()),
    }
}

fn plain(text: &str) -> Result<(Host, &str), Wrong> {
    if text.is_empty() {
        return Err(Wrong::Empty);
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        // A bare number may be meant as a port, so it is not called a bad host.
        return Err(Wrong::NoPort);
    };
    if host.is_empty() {
        return Ok((Host::Every, port));
    }
    if text.parse::<Ipv6Addr>().is_ok() || host.parse::<Ipv6Addr>().is_ok() {
        return Err(Wrong::Unbracketed);
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return Ok((Host::Address(SocketAddr::new(address.into(), 0)), port));
    }
    let part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if host.len() > LONGEST_NAME || !host.bytes().all(part) {
        return Err(Wrong::NotAName(host.to_owned()));
    }
    // Resolvers read 127.1 and 0x7f000001 as addresses that few people mean.
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x") {
        return Err(Wrong::NotIpv4(host.to_owned()));
    }
    Ok((Host::Name(host.to_owned()), port))
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Every => write!(f, ":{}", self.port),
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
    fn takes_addresses_names_and_every_interface() {
        for (text, host) in [
            (":50051", Host::Every),
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
    fn what_is_wrong_is_named_and_how_to_write_it() {
        let long = format!("{}:1", "a".repeat(LONGEST_NAME + 1));
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

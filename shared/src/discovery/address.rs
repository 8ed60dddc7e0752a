//! The address that a worker can be dialled at.

use std::{fmt, net::SocketAddr, str::FromStr};

use http::uri::Authority;

/// `host:port`, with a port other than 0.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "etcd", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "etcd", serde(into = "String", try_from = "String"))]
pub struct Address(String);

/// The text is not a valid address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write it as host:port, for instance 127.0.0.1:50052")]
pub struct NotAnAddress;

impl Address {
    /// Returns the name and the port, or `None` if the host is an IP address.
    pub fn name_and_port(&self) -> Option<(String, u16)> {
        if self.0.parse::<SocketAddr>().is_ok() {
            return None;
        }
        let (name, port) = self.0.rsplit_once(':')?;
        Some((name.to_owned(), port.parse().ok()?))
    }

    /// Returns whether this is the unspecified address (0.0.0.0 or ::), which a server can listen
    /// on but a client on another machine cannot dial.
    pub fn is_unspecified(&self) -> bool {
        self.0.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified())
    }
}

impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let authority: Authority = text.parse().map_err(|_| NotAnAddress)?;
        let plain = !authority.as_str().contains('@') && !authority.host().is_empty();
        match authority.port_u16() {
            Some(1..) if plain => Ok(Self(text.to_owned())),
            _ => Err(NotAnAddress),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = NotAnAddress;

    fn try_from(text: String) -> Result<Self, NotAnAddress> {
        text.parse()
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self(address.to_string())
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_and_port_are_accepted() {
        for good in ["127.0.0.1:50052", "worker-0.stoker:1", "[::1]:65535"] {
            assert_eq!(good.parse::<Address>().map(String::from), Ok(good.to_owned()));
        }
        for bad in ["", "host", ":1", "host:0", "host:65536", "http://host:1", "me@host:1", "a b:1"]
        {
            assert_eq!(bad.parse::<Address>(), Err(NotAnAddress), "{bad:?}");
        }
    }

    #[test]
    fn unspecified_addresses_are_recognized() {
        for (address, unspecified) in
            [("0.0.0.0:1", true), ("[::]:1", true), ("127.0.0.1:1", false), ("host:1", false)]
        {
            let parsed = address.parse::<Address>();
            assert_eq!(parsed.map(|a| a.is_unspecified()), Ok(unspecified), "{address}");
        }
    }
}

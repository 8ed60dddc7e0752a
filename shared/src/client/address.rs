//! Addresses of clusters.

use std::{fmt, net::SocketAddr, str::FromStr};

use tonic::transport::Uri;

/// Address of a cluster: `host:port`, or a URL, `http://host:port`, or `https://host:port` for TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(Uri);

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let usage = "write it as host:port, for instance 127.0.0.1:50051, or as a URL with \
                     http:// or, for TLS, https://";
        let (scheme, authority) = match text.split_once("://") {
            None => ("http", text),
            Some((scheme @ ("http" | "https"), rest)) => {
                (scheme, rest.strip_suffix('/').unwrap_or(rest))
            }
            Some(_) => return Err(usage),
        };
        let uri: Uri = format!("{scheme}://{authority}").parse().map_err(|_| usage)?;
        let plain =
            uri.authority().is_some_and(|a| a.as_str() == authority && !a.as_str().contains('@'))
                && uri.host().is_some_and(|host| !host.is_empty());
        match uri.port_u16() {
            Some(1..) if plain => Ok(Self(uri)),
            _ => Err(usage),
        }
    }
}

impl Address {
    /// Whether connections use TLS.
    pub fn is_tls(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }

    /// Returns the host, without the brackets of an IPv6 address.
    pub fn host(&self) -> &str {
        self.0.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
    }

    /// Returns `host:port`.
    pub fn authority(&self) -> &str {
        self.0.authority().map_or("", |authority| authority.as_str())
    }

    /// Returns another address with the same scheme.
    #[must_use]
    pub fn with_authority(&self, address: SocketAddr) -> Self {
        let scheme = self.0.scheme_str().unwrap_or("http");
        let uri = Uri::builder().scheme(scheme).authority(address.to_string()).path_and_query("/");
        // Does not fail: a socket address is a valid authority.
        Self(uri.build().unwrap_or_default())
    }

    /// Returns the address as a URL.
    pub(super) fn uri(&self) -> &Uri {
        &self.0
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let uri = Uri::builder().scheme("http").authority(address.to_string()).path_and_query("/");
        // Does not fail: a socket address is a valid authority.
        Self(uri.build().unwrap_or_default())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls() { "https://" } else { "" };
        write!(f, "{scheme}{}", self.authority())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn addresses_are_parsed_in_every_form() {
        for (text, displayed) in [
            ("127.0.0.1:50051", "127.0.0.1:50051"),
            ("router:80", "router:80"),
            ("http://router:80", "router:80"),
            ("http://router:80/", "router:80"),
            ("[::1]:50051", "[::1]:50051"),
            ("https://router:443/", "https://router:443"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), displayed);
        }
        for bad in [
            "",
            "router",
            ":80",
            "router:0",
            "router:99999",
            "router:80/path",
            "a b:80",
            "me@router:80",
            "ftp://router:80",
            "https://router",
            "router:80?x",
            "http://",
        ] {
            let error = bad.parse::<Address>().unwrap_err();
            assert!(error.contains("host:port"), "{bad:?}: {error}");
        }
    }
}

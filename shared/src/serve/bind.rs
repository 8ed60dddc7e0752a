//! Binds a listener. Errors name the flag and the address.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, lookup_host};

use super::{
    Listener,
    listen_address::{Host, ListenAddress},
};

/// Length of the accept queue. The default of tokio.
const BACKLOG: i32 = 1024;

/// Why a process cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process uses the port.
    #[error("{flag} {address}: the port is in use; choose another, or port 0 for any free one")]
    InUse {
        /// The flag.
        flag: &'static str,
        /// The value of the flag.
        address: ListenAddress,
    },
    /// The resolver does not know the name, or did not respond.
    #[error(
        "{flag} {address}: the host name does not resolve ({source}); write a name or an address of this machine, or \
         :{} for every interface", address.port
    )]
    Unresolved {
        /// The flag.
        flag: &'static str,
        /// The value of the flag.
        address: ListenAddress,
        /// Error of the resolver.
        source: io::Error,
    },
    /// The address belongs to another machine.
    #[error(
        "{flag} {address}: this is not an address of this machine; write one that is, or :{} for every interface",
        address.port
    )]
    NotLocal {
        /// The flag.
        flag: &'static str,
        /// The value of the flag.
        address: ListenAddress,
    },
    /// Any other error.
    #[error("{flag} {address}: {source}")]
    Other {
        /// The flag.
        flag: &'static str,
        /// The value of the flag.
        address: ListenAddress,
        /// Error of the operating system.
        source: io::Error,
    },
}

/// Binds the `address` of `--listen`.
pub async fn bind(address: impl Into<ListenAddress>) -> Result<Listener, BindError> {
    bind_for("--listen", address).await
}

/// Binds the `address` of `flag`, which errors name.
pub async fn bind_for(
    flag: &'static str,
    address: impl Into<ListenAddress>,
) -> Result<Listener, BindError> {
    let address = address.into();
    let bound = match &address.host {
        Host::AllInterfaces => bind_all_interfaces(address.port),
        Host::Address(address) => TcpListener::bind(address).await,
        Host::Name(name) => match resolve(name, address.port).await {
            Ok(found) => bind_first(&found).await,
            Err(source) => return Err(BindError::Unresolved { flag, address, source }),
        },
    };
    bound.map(Listener::from).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { flag, address },
        io::ErrorKind::AddrNotAvailable => BindError::NotLocal { flag, address },
        _ => BindError::Other { flag, address, source },
    })
}

/// Binds one dual-stack socket for IPv6 and IPv4, or an IPv4 socket if the machine has no IPv6.
fn bind_all_interfaces(port: u16) -> io::Result<TcpListener> {
    // Fails on a kernel without IPv6.
    let listener = match dual_stack() {
        Ok(socket) => match listen(&socket, Ipv6Addr::UNSPECIFIED, port) {
            // Returned if IPv6 is disabled. Other errors, such as a port in use, are not caused by
            // that.
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => ipv4(port)?,
            listening => listening.map(|()| socket)?,
        },
        Err(_) => ipv4(port)?,
    };
    TcpListener::from_std(listener.into())
}

fn dual_stack() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    // The default of the system may be IPv6 only.
    socket.set_only_v6(false)?;
    Ok(socket)
}

fn ipv4(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    listen(&socket, Ipv4Addr::UNSPECIFIED, port)?;
    Ok(socket)
}

fn listen(socket: &Socket, unspecified: impl Into<IpAddr>, port: u16) -> io::Result<()> {
    // As `TcpListener::bind` of tokio does, so that a restarted server can bind its port. On
    // Windows, two processes would share the port.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(unspecified.into(), port).into())?;
    socket.listen(BACKLOG)
}

/// Resolves a name. IPv4 addresses are first: otherwise, a resolver that returns ::1 first for
/// `localhost` would make the server unreachable at 127.0.0.1, which all programs use by default.
async fn resolve(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut found: Vec<_> = lookup_host((name, port)).await?.collect();
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "it has no addresses"));
    }
    found.sort_by_key(SocketAddr::is_ipv6);
    Ok(found)
}

/// Binds the first of `addresses` that belongs to this machine. A port that is in use or forbidden
/// ends the search: on another address, clients would not find the server.
async fn bind_first(addresses: &[SocketAddr]) -> io::Result<TcpListener> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) => match error.kind() {
                io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => return Err(error),
                _ => last = error,
            },
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use tokio::net::TcpStream;

    use super::*;

    async fn bound(text: &str) -> Result<TcpListener, BindError> {
        let bound = bind_for("--here", text.parse::<ListenAddress>().unwrap()).await;
        bound.map(|listener| listener.into_parts().0)
    }

    async fn port_of(text: &str) -> (SocketAddr, TcpListener) {
        let listener = bound(text).await.unwrap();
        (listener.local_addr().unwrap(), listener)
    }

    #[tokio::test]
    async fn a_name_is_resolved_and_ipv4_is_preferred() {
        let (address, _listener) = port_of("localhost:0").await;
        assert_eq!(address.ip(), Ipv4Addr::LOCALHOST);
        assert_ne!(address.port(), 0);
    }

    #[tokio::test]
    async fn all_interfaces_accept_both_protocols() {
        let (address, listener) = port_of(":0").await;
        assert!(address.ip().is_unspecified());
        TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).await.unwrap();
        let (_, from) = listener.accept().await.unwrap();
        assert_eq!(from.ip().to_canonical(), Ipv4Addr::LOCALHOST);
        if address.is_ipv6() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, address.port())).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_port_in_use_is_reported_for_every_form_of_address() {
        let (address, _listener) = port_of("127.0.0.1:0").await;
        for text in [
            format!("127.0.0.1:{}", address.port()),
            format!("localhost:{}", address.port()),
            format!(":{}", address.port()),
        ] {
            let error = bound(&text).await.unwrap_err();
            assert!(matches!(error, BindError::InUse { .. }), "{error}");
            assert!(error.to_string().starts_with(&format!("--here {text}: the port is in use")));
        }
    }

    #[tokio::test]
    async fn an_address_of_another_machine_is_reported() {
        // Reserved for documentation: RFC 5737 and RFC 6761.
        let error = bound("192.0.2.1:0").await.unwrap_err().to_string();
        assert!(error.starts_with("--here 192.0.2.1:0: this is not an address of this machine"));
        let error = bound("no-such-host.invalid:50051").await.unwrap_err().to_string();
        let what = "--here no-such-host.invalid:50051: the host name does not resolve (";
        assert!(error.starts_with(what) && error.contains("or :50051 for every"), "{error}");
    }

    #[tokio::test]
    async fn addresses_of_other_machines_are_skipped() {
        let remote = SocketAddr::from(([192, 0, 2, 1], 0));
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = bind_first(&[remote, local]).await.unwrap();
        let taken = listener.local_addr().unwrap();
        assert_eq!(taken.ip(), Ipv4Addr::LOCALHOST);
        let error = bind_first(&[remote, taken, local]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "no fallback to another address");
    }
}

//! Takes a port, with an error that says which flag asked for what.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, lookup_host};

use super::listen_address::{Host, ListenAddress};

/// Connections that the system keeps until they are accepted; tokio's own choice.
const BACKLOG: i32 = 1024;

/// Why a process cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process is there.
    #[error("{flag} {address}: the port is in use; choose another, or port 0 for any free one")]
    InUse {
        /// Who asked for it.
        flag: &'static str,
        /// What was asked for.
        address: ListenAddress,
    },
    /// The resolver does not know the name, or gave no answer.
    #[error(
        "{flag} {address}: the host name does not resolve ({source}); write a name or an address of this machine, or \
         :{} for every interface", address.port
    )]
    Unresolved {
        /// Who asked for it.
        flag: &'static str,
        /// What was asked for.
        address: ListenAddress,
        /// What the resolver said.
        source: io::Error,
    },
    /// It leads to other machines.
    #[error(
        "{flag} {address}: this is not an address of this machine; write one that is, or :{} for every interface",
        address.port
    )]
    Elsewhere {
        /// Who asked for it.
        flag: &'static str,
        /// What was asked for.
        address: ListenAddress,
    },
    /// Anything else.
    #[error("{flag} {address}: {source}")]
    Other {
        /// Who asked for it.
        flag: &'static str,
        /// What was asked for.
        address: ListenAddress,
        /// What the system said.
        source: io::Error,
    },
}

/// Listens on the `address` of `--listen`.
pub async fn bind(address: impl Into<ListenAddress>) -> Result<TcpListener, BindError> {
    bind_for("--listen", address).await
}

/// Listens on the `address` of `flag`, which errors name.
pub async fn bind_for(
    flag: &'static str,
    address: impl Into<ListenAddress>,
) -> Result<TcpListener, BindError> {
    let address = address.into();
    let bound = match &address.host {
        Host::Every => every_interface(address.port),
        Host::Address(address) => TcpListener::bind(address).await,
        Host::Name(name) => match resolve(name, address.port).await {
            Ok(found) => first_of(&found).await,
            Err(source) => return Err(BindError::Unresolved { flag, address, source }),
        },
    };
    bound.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { flag, address },
        io::ErrorKind::AddrNotAvailable => BindError::Elsewhere { flag, address },
        _ => BindError::Other { flag, address, source },
    })
}

/// Listens on IPv6 and IPv4 with one socket; on IPv4 alone where the machine has no IPv6.
fn every_interface(port: u16) -> io::Result<TcpListener> {
    // A kernel without IPv6 has no such sockets.
    let listener = match dual_stack() {
        Ok(socket) => match listen(&socket, Ipv6Addr::UNSPECIFIED, port) {
            // Where it is switched off, they have no address. A port in use or forbidden is no sign of that.
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => ipv4(port)?,
            listening => listening.map(|()| socket)?,
        },
        Err(_) => ipv4(port)?,
    };
    TcpListener::from_std(listener.into())
}

fn dual_stack() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    // The system's default may be IPv6 alone.
    socket.set_only_v6(false)?;
    Ok(socket)
}

fn ipv4(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    listen(&socket, Ipv4Addr::UNSPECIFIED, port)?;
    Ok(socket)
}

fn listen(socket: &Socket, every: impl Into<IpAddr>, port: u16) -> io::Result<()> {
    // As tokio's own `bind` does: a server that restarts finds its port free. On Windows, two would share it.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(every.into(), port).into())?;
    socket.listen(BACKLOG)
}

/// The addresses of a name. IPv4 goes first: a resolver that puts ::1 first for `localhost` would leave those out who
/// dial 127.0.0.1, which is what the defaults of all programs say.
async fn resolve(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut found: Vec<_> = lookup_host((name, port)).await?.collect();
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "it has no addresses"));
    }
    found.sort_by_key(SocketAddr::is_ipv6);
    Ok(found)
}

/// Listens on the first of `addresses` that belongs to this machine. A port that is in use or forbidden ends the search:
/// on the next address, the server would be where its clients do not look.
async fn first_of(addresses: &[SocketAddr]) -> io::Result<TcpListener> {
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
        bind_for("--here", text.parse::<ListenAddress>().unwrap()).await
    }

    async fn port_of(text: &str) -> (SocketAddr, TcpListener) {
        let listener = bound(text).await.unwrap();
        (listener.local_addr().unwrap(), listener)
    }

    #[tokio::test]
    async fn a_name_is_resolved_and_ipv4_goes_first() {
        let (address, _listener) = port_of("localhost:0").await;
        assert_eq!(address.ip(), Ipv4Addr::LOCALHOST);
        assert_ne!(address.port(), 0);
    }

    #[tokio::test]
    async fn every_interface_takes_both_protocols() {
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
    async fn a_port_in_use_is_named_however_it_is_written() {
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
    async fn a_host_that_is_not_this_one_is_named() {
        // Reserved for documents: RFC 5737 and RFC 6761.
        let error = bound("192.0.2.1:0").await.unwrap_err().to_string();
        assert!(error.starts_with("--here 192.0.2.1:0: this is not an address of this machine"));
        let error = bound("no-such-host.invalid:50051").await.unwrap_err().to_string();
        let what = "--here no-such-host.invalid:50051: the host name does not resolve (";
        assert!(error.starts_with(what) && error.contains("or :50051 for every"), "{error}");
    }

    #[tokio::test]
    async fn addresses_that_are_not_here_are_passed_over() {
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], 0));
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = first_of(&[elsewhere, here]).await.unwrap();
        let taken = listener.local_addr().unwrap();
        assert_eq!(taken.ip(), Ipv4Addr::LOCALHOST);
        let error = first_of(&[elsewhere, taken, here]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "no other address instead");
    }
}

//! The same care for a port of plain HTTP, where metrics and probes are read: few connections, and none that says nothing.

use std::{io, net::SocketAddr};

use futures::{StreamExt, stream::BoxStream};
use tokio::net::{TcpListener, TcpStream};

use super::{Bounds, Connection, LimitsConfig, incoming};
use crate::batched::Batched;

/// Readers of metrics, and probes. Beyond it, those that have been there for longest make room.
const CONNECTIONS: u32 = 64;

type Io = Batched<Connection<TcpStream>>;

/// A listener for `axum::serve`.
pub struct HttpListener {
    connections: BoxStream<'static, io::Result<Io>>,
    address: SocketAddr,
}

impl HttpListener {
    /// Accepts on `listener`. Needs tokio.
    pub fn new(listener: TcpListener) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let config = LimitsConfig { max_connections: CONNECTIONS, ..LimitsConfig::default() };
        let connections = incoming(listener, &Bounds::new(&config, None)).boxed();
        Ok(Self { connections, address })
    }
}

impl axum::serve::Listener for HttpListener {
    type Io = Io;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Io, SocketAddr) {
        match self.connections.next().await {
            Some(Ok(connection)) => (connection, self.address),
            // It tries for ever by itself.
            Some(Err(_)) | None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

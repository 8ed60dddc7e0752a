//! An HTTP listener with the same limits, for metrics and probes.

use std::{io, net::SocketAddr};

use futures::{StreamExt, stream::BoxStream};

use super::{Bounds, Connection, LimitsConfig, Listener, accepted::Accepted, incoming};
use crate::batched::Batched;

/// Maximum number of connections. Beyond it, idle connections are closed for new ones.
const MAX_CONNECTIONS: u32 = 64;

type Io = Batched<Connection<Accepted>>;

/// A listener for `axum::serve`.
pub struct HttpListener {
    connections: BoxStream<'static, io::Result<Io>>,
    address: SocketAddr,
}

impl HttpListener {
    /// Accepts connections on `listener`. Must be called within a tokio runtime.
    pub fn new(listener: Listener) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let config = LimitsConfig { max_connections: MAX_CONNECTIONS, ..LimitsConfig::default() };
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
            // Not reached: the stream retries accept errors and does not end.
            Some(Err(_)) | None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

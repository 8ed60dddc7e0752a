//! A bound listener, with or without TLS.

use std::{io, net::SocketAddr};

use tokio::net::TcpListener;

use crate::{cli::ServerError, tls::ServerTls};

/// A bound socket, and the TLS of its connections.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    tls: Option<ServerTls>,
}

impl Listener {
    /// Returns the same listener with TLS, or without.
    #[must_use]
    pub fn with_tls(self, tls: Option<ServerTls>) -> Self {
        Self { tls, ..self }
    }

    /// Returns the address that it is bound to.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Whether connections use TLS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Returns another handle to the same socket.
    pub fn duplicate(self) -> io::Result<(Self, Self)> {
        let (tcp, tls) = (self.tcp.into_std()?, self.tls);
        let second = tcp.try_clone()?;
        let listener = |tcp| -> io::Result<Self> {
            Ok(Self { tcp: TcpListener::from_std(tcp)?, tls: tls.clone() })
        };
        Ok((listener(tcp)?, listener(second)?))
    }

    pub(super) fn into_parts(self) -> (TcpListener, Option<ServerTls>) {
        (self.tcp, self.tls)
    }

    pub(super) fn check_plaintext(&self, flag: &str, is_allowed: bool) -> Result<(), ServerError> {
        let address = self.local_addr().map_err(ServerError::failed)?;
        if self.is_tls() || is_allowed || address.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        Err(ServerError::Usage(format!(
            "{flag} {address}: other hosts reach this address, and connections are not encrypted; \
             give --tls-cert and --tls-key, or --allow-plaintext if a proxy or a mesh encrypts"
        )))
    }

    /// Refuses an address that other hosts reach without any identification of clients, unless that
    /// is allowed.
    pub fn check_anonymous(&self, flag: &str, is_allowed: bool) -> Result<(), ServerError> {
        let address = self.local_addr().map_err(ServerError::failed)?;
        let verified = self.tls.as_ref().is_some_and(ServerTls::requires_client);
        if verified || is_allowed || address.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        Err(ServerError::Usage(format!(
            "{flag} {address}: other hosts reach this address, and clients need no key; give \
             --api-keys, or --allow-anonymous if a gateway authenticates clients"
        )))
    }
}

impl From<TcpListener> for Listener {
    fn from(tcp: TcpListener) -> Self {
        Self { tcp, tls: None }
    }
}

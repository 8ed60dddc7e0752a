//! TLS of a program that was built without it: every flag is refused.

use std::{
    convert::Infallible,
    error::Error,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{ClientConfig, FlagFile, KeyPair, PeerIdentity, TlsError};
use crate::reload::Reloads;

/// TLS of the listeners of a process, of which there is none.
#[derive(Debug, Clone)]
pub struct ServerTls(Infallible);

impl ServerTls {
    /// Returns an error.
    pub fn load(
        own: KeyPair,
        _client_ca: Option<FlagFile>,
        _reloads: &Reloads,
    ) -> Result<Self, TlsError> {
        Err(TlsError::NotBuilt(own.cert.flag))
    }

    /// Not reached.
    pub fn http(&self) -> Self {
        match self.0 {}
    }

    /// Not reached.
    pub fn metrics(&self) -> Self {
        match self.0 {}
    }

    /// Not reached.
    pub fn requires_client(&self) -> bool {
        match self.0 {}
    }

    pub(crate) fn accept(&self, _: TcpStream) -> Handshake {
        match self.0 {}
    }
}

/// TLS of connections to servers, of which there is none.
#[derive(Debug, Clone)]
pub struct ClientTls(Infallible);

impl ClientTls {
    /// Returns an error.
    pub fn load(
        config: ClientConfig,
        _own: Option<KeyPair>,
        _reloads: &Reloads,
    ) -> Result<Self, TlsError> {
        Err(TlsError::NotBuilt(match config {
            ClientConfig::Identity { ca, .. }
            | ClientConfig::Pinned(ca)
            | ClientConfig::Name { ca: Some(ca), .. } => ca.flag,
            ClientConfig::Name { .. } => "https",
        }))
    }

    /// Not reached.
    #[must_use]
    pub fn http1(&self) -> Self {
        match self.0 {}
    }

    /// Not reached.
    pub fn take_error(&self) -> Option<String> {
        match self.0 {}
    }

    /// Not reached.
    pub async fn connect(&self, _host: &str, _tcp: TcpStream) -> io::Result<ClientStream> {
        match self.0 {}
    }
}

/// Returns nothing: no error is one of TLS.
pub fn explain(_: &(dyn Error + 'static)) -> Option<String> {
    None
}

/// A handshake, of which there is none.
pub(crate) struct Handshake(Infallible);

impl Future for Handshake {
    type Output = Result<ServerStream, (io::Error, TcpStream)>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        match self.0 {}
    }
}

/// A connection over TLS, of which there is none.
#[derive(Debug)]
pub struct ClientStream(Infallible);

/// A connection over TLS, of which there is none.
pub(crate) struct ServerStream(Infallible);

impl ServerStream {
    pub(crate) fn identity(&self) -> Option<PeerIdentity> {
        match self.0 {}
    }
}

macro_rules! never {
    ($stream:ty) => {
        impl AsyncRead for $stream {
            fn poll_read(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
                _: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.0 {}
            }
        }

        impl AsyncWrite for $stream {
            fn poll_write(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
                _: &[u8],
            ) -> Poll<io::Result<usize>> {
                match self.0 {}
            }

            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.0 {}
            }

            fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.0 {}
            }
        }
    };
}

never!(ClientStream);
never!(ServerStream);

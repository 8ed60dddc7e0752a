//! TLS of connections that this process accepts.

use std::{
    io,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use rustls::{ServerConfig, server::WebPkiClientVerifier};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{FallibleAccept, TlsAcceptor, server::TlsStream};

use super::{
    FlagFile, KeyPair, PeerIdentity, TlsError,
    certificate::{self, Usage},
    client::{mismatch, provider, roots},
    pem,
};
use crate::reload::{Reloaded, Reloads};

/// TLS of the listeners of a process. Clones share it.
#[derive(Debug, Clone)]
pub struct ServerTls {
    configs: Reloaded<Configs>,
    protocol: Protocol,
    requires_client: bool,
}

/// Protocol of a listener.
#[derive(Debug, Clone, Copy)]
enum Protocol {
    Grpc,
    Http,
    Metrics,
}

/// One configuration for each protocol.
#[derive(Debug)]
pub(super) struct Configs {
    grpc: Arc<ServerConfig>,
    http: Arc<ServerConfig>,
    metrics: Arc<ServerConfig>,
}

impl ServerTls {
    /// Reads the files, and again when they change. With `client_ca`, clients need a certificate.
    pub fn load(
        own: KeyPair,
        client_ca: Option<FlagFile>,
        reloads: &Reloads,
    ) -> Result<Self, TlsError> {
        let requires_client = client_ca.is_some();
        let files = [&own.cert, &own.key].into_iter().chain(client_ca.as_ref());
        let files: Vec<PathBuf> = files.map(|file| file.path.clone()).collect();
        let metrics = reloads.clone();
        let load = move || Configs::build(&own, client_ca.as_ref(), &metrics);
        let configs = reloads.follow("server", files, load)?;
        Ok(Self { configs, protocol: Protocol::Grpc, requires_client })
    }

    /// Returns the same for HTTP/1.1 beside HTTP/2.
    pub fn http(&self) -> Self {
        Self { protocol: Protocol::Http, ..self.clone() }
    }

    /// Returns the same for metrics: HTTP/1.1, without client certificates.
    pub fn metrics(&self) -> Self {
        Self { protocol: Protocol::Metrics, requires_client: false, ..self.clone() }
    }

    /// Whether clients need a certificate.
    pub fn requires_client(&self) -> bool {
        self.requires_client
    }

    /// Starts a handshake on `tcp`, with the certificate that is current now.
    pub(crate) fn accept(&self, tcp: TcpStream) -> Handshake {
        let configs = self.configs.current();
        let config = match self.protocol {
            Protocol::Grpc => &configs.grpc,
            Protocol::Http => &configs.http,
            Protocol::Metrics => &configs.metrics,
        };
        let accept = TlsAcceptor::from(Arc::clone(config)).accept(tcp);
        Handshake(Box::new(accept.into_fallible()))
    }
}

impl Configs {
    pub(super) fn build(
        own: &KeyPair,
        client_ca: Option<&FlagFile>,
        reloads: &Reloads,
    ) -> Result<Self, TlsError> {
        let config = |client_ca: Option<&FlagFile>| -> Result<ServerConfig, TlsError> {
            let builder = ServerConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()
                // Not reached: the provider has the suites of both versions.
                .map_err(|error| TlsError::file(&own.cert, error.to_string()))?;
            let builder = match client_ca {
                None => builder.with_no_client_auth(),
                Some(file) => {
                    let roots = Arc::new(roots(Some(file))?);
                    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
                    let verifier = verifier
                        .build()
                        .map_err(|error| TlsError::file(file, error.to_string()))?;
                    builder.with_client_cert_verifier(verifier)
                }
            };
            let chain = certificate::chain(&own.cert, Usage::Server)?;
            reloads.expires("server", chain.expires);
            builder
                .with_single_cert(chain.certificates, pem::private_key(&own.key)?)
                .map_err(|error| mismatch(&own.cert, &own.key, &error))
        };
        let with = |config: &ServerConfig, protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            Arc::new(config)
        };
        let verified = config(client_ca)?;
        Ok(Self {
            grpc: with(&verified, &[b"h2"]),
            http: with(&verified, &[b"h2", b"http/1.1"]),
            metrics: with(&config(None)?, &[b"http/1.1"]),
        })
    }
}

/// A handshake that has begun.
pub(crate) struct Handshake(Box<FallibleAccept<TcpStream>>);

impl Future for Handshake {
    /// After an error, the connection is returned: what the peer sends is to be read, since a
    /// connection that is closed with unread bytes is reset, and the peer does not see the alert.
    type Output = Result<ServerStream, (io::Error, TcpStream)>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map_ok(|stream| ServerStream(Box::new(stream)))
    }
}

/// A connection over TLS.
pub(crate) struct ServerStream(Box<TlsStream<TcpStream>>);

impl ServerStream {
    /// Returns the identity in the verified certificate of the client, if it has one.
    pub(crate) fn identity(&self) -> Option<PeerIdentity> {
        let (_, session) = self.0.get_ref();
        session.peer_certificates()?.first().map(certificate::identity)
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

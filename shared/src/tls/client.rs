//! TLS of connections that this process opens.

use std::{
    io,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use rustls::{
    ClientConfig as RustlsConfig, RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::ServerName,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    ClientConfig, FlagFile, KeyPair, TlsError,
    certificate::{self, Usage},
    pem,
    verify::ServerVerifier,
};
use crate::reload::{Reloaded, Reloads};

/// TLS of connections to one kind of servers. Clones share it.
#[derive(Debug, Clone)]
pub struct ClientTls {
    config: Reloaded<RustlsConfig>,
    /// Name to verify instead of the host that is dialled.
    name: Option<ServerName<'static>>,
    /// Whether the protocol is HTTP/1.1 instead of HTTP/2.
    is_http1: bool,
    last_error: LastError,
}

/// Why a connection ended last, if TLS says so.
type LastError = Arc<Mutex<Option<String>>>;

impl ClientTls {
    /// Reads the files, and again when they change. `own` is the client certificate.
    pub fn load(
        config: ClientConfig,
        own: Option<KeyPair>,
        reloads: &Reloads,
    ) -> Result<Self, TlsError> {
        let name = match &config {
            ClientConfig::Name { name: Some(name), .. } => {
                Some(ServerName::try_from(name.clone()).map_err(|_| TlsError::File {
                    file: FlagFile::new("--tls-server-name", name),
                    why: "is neither a host name nor an IP address".into(),
                })?)
            }
            _ => None,
        };
        let files = files(&config, own.as_ref());
        let secret = match &config {
            ClientConfig::Identity { .. } => "workers",
            ClientConfig::Name { secret, .. } => secret,
            ClientConfig::Pinned(_) => "client",
        };
        let metrics = reloads.clone();
        let load = move || build(&config, own.as_ref(), secret, &metrics);
        // A command ends before its files change, and may run without metrics.
        let config = match secret {
            "client" => Reloaded::fixed(load()?),
            _ => reloads.follow(secret, files, load)?,
        };
        Ok(Self { config, name, is_http1: false, last_error: LastError::default() })
    }

    /// Returns the same for HTTP/1.1.
    #[must_use]
    pub fn http1(&self) -> Self {
        Self { is_http1: true, ..self.clone() }
    }

    /// Completes a handshake with `host`, a name or an IP address, on `tcp`.
    pub async fn connect(&self, host: &str, tcp: TcpStream) -> io::Result<ClientStream> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = match &self.name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(io::Error::other)?,
        };
        let mut config = self.config.current();
        if self.is_http1 {
            let mut http1 = RustlsConfig::clone(&config);
            http1.alpn_protocols = vec![b"http/1.1".to_vec()];
            config = Arc::new(http1);
        }
        let connector = TlsConnector::from(config);
        let stream = connector.connect(name, tcp).await.map_err(explained)?;
        let last_error = Arc::clone(&self.last_error);
        Ok(ClientStream { stream: Box::new(stream), failed: None, last_error })
    }

    /// Takes the reason for which a connection ended last, if TLS said so. With TLS 1.3, a server
    /// refuses a client after the handshake, and calls then see a closed connection.
    pub fn take_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn files(config: &ClientConfig, own: Option<&KeyPair>) -> Vec<PathBuf> {
    let ca = match config {
        ClientConfig::Name { ca, .. } => ca.as_ref(),
        ClientConfig::Identity { ca, .. } | ClientConfig::Pinned(ca) => Some(ca),
    };
    let own = own.into_iter().flat_map(|pair| [&pair.cert, &pair.key]);
    ca.into_iter().chain(own).map(|file| file.path.clone()).collect()
}

fn build(
    config: &ClientConfig,
    own: Option<&KeyPair>,
    secret: &'static str,
    reloads: &Reloads,
) -> Result<RustlsConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = RustlsConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        // Not reached: the provider has the suites of both versions.
        .map_err(|error| TlsError::File { file: own_file(own), why: error.to_string() })?;
    let builder = match config {
        ClientConfig::Name { ca, .. } => builder.with_root_certificates(roots(ca.as_ref())?),
        ClientConfig::Identity { ca, patterns } => {
            let roots = Arc::new(roots(Some(ca))?);
            let verifier = ServerVerifier::identity(roots, patterns.clone(), provider);
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
        ClientConfig::Pinned(file) => {
            let certificate = pem::certificates(file)?.swap_remove(0);
            let verifier = ServerVerifier::pinned(certificate, provider);
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(KeyPair { cert, key }) => {
            // The certificate of a server is presented to itself, whatever it is for.
            let usage = match config {
                ClientConfig::Pinned(_) => Usage::Server,
                _ => Usage::Client,
            };
            let chain = certificate::chain(cert, usage)?;
            reloads.expires(secret, chain.expires);
            builder
                .with_client_auth_cert(chain.certificates, pem::private_key(key)?)
                .map_err(|error| mismatch(cert, key, &error))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn own_file(own: Option<&KeyPair>) -> FlagFile {
    own.map_or_else(|| FlagFile::new("TLS", ""), |pair| pair.cert.clone())
}

/// Returns the error of a key that cannot be used with its certificate.
pub(super) fn mismatch(cert: &FlagFile, key: &FlagFile, error: &rustls::Error) -> TlsError {
    let why = match error {
        rustls::Error::InconsistentKeys(_) => format!(
            "is not the key of the certificate in {} {}; give the two that belong together",
            cert.flag,
            cert.path.display()
        ),
        error => format!("cannot be used: {error}"),
    };
    TlsError::file(key, why)
}

/// Returns the authorities of a file, or those of the system.
pub(super) fn roots(file: Option<&FlagFile>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let Some(file) = file else {
        // Systems have authorities that rustls does not understand.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            let file = FlagFile::new("--tls-ca", "");
            let why = "is not given, and this system has no authorities (CAs); give a file of them";
            return Err(TlsError::File { file, why: why.into() });
        }
        return Ok(roots);
    };
    for (i, authority) in certificate::authorities(file)?.into_iter().enumerate() {
        roots.add(authority).map_err(|error| {
            TlsError::file(file, format!("entry {} cannot be used ({error}); remove it", i + 1))
        })?;
    }
    Ok(roots)
}

/// Returns the cryptography of this process.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A connection over TLS. Its errors say what to change.
#[derive(Debug)]
pub struct ClientStream {
    stream: Box<TlsStream<TcpStream>>,
    /// The error of a write, after which what the peer said is read.
    failed: Option<io::Error>,
    last_error: LastError,
}

impl ClientStream {
    /// Explains an error, and keeps the explanation.
    fn explained(&self, error: io::Error) -> io::Error {
        if let Some(cause) = super::explain(&error) {
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause);
        }
        explained(error)
    }

    fn write<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TlsStream<TcpStream>>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.failed.is_none() {
            match write(Pin::new(&mut self.stream), cx) {
                Poll::Ready(Err(error)) => self.failed = Some(error),
                written => return written,
            }
        }
        // With TLS 1.3, a peer refuses a certificate after the handshake of this side, and closes the
        // connection: the reason has arrived, or the end of the connection will.
        let mut unread = [0; 1024];
        let read = Pin::new(&mut self.stream).poll_read(cx, &mut ReadBuf::new(&mut unread));
        let read = ready!(read).map_err(|error| self.explained(error));
        let failed = self.failed.take().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
        Poll::Ready(Err(match read {
            Err(cause) if cause.kind() == io::ErrorKind::InvalidData => cause,
            _ => failed,
        }))
    }
}

/// Replaces the text of an error by its explanation: HTTP/2 keeps the text alone.
fn explained(error: io::Error) -> io::Error {
    match super::explain(&error) {
        Some(cause) => io::Error::new(error.kind(), cause),
        None => error,
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        read.map_err(|error| self.explained(error))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |stream, cx| stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

//! Connections to a cluster.

use std::{error::Error, io, num::NonZeroUsize, time::Duration};

use futures::future::try_join_all;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint, Uri},
};
use tower::{Service, service_fn};

use super::{
    Address, CONNECTION_WINDOW,
    credentials::{Authorization, Credentials, CredentialsError},
};
use crate::{
    error::root_cause,
    tls::{ClientStream, ClientTls},
};

/// Time limit for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Detects a peer that vanished without closing the connection. TCP keep-alive is used instead of
/// HTTP/2 pings, which some proxies treat as an attack.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// A connection whose calls carry the credentials of a client.
pub type Transport = InterceptedService<Channel, Authorization>;

/// A connection to the cluster failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The cluster cannot be reached.
    #[error("no cluster at {address}: {cause}; start one with `stoker serve`")]
    Unreachable {
        /// The address that was dialled.
        address: Address,
        /// The cause, for instance `connection refused`.
        cause: String,
    },
    /// The certificates or the key that were given cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

impl ConnectError {
    /// Returns the cause alone, for instance `connection refused`.
    pub fn cause(&self) -> String {
        match self {
            Self::Unreachable { cause, .. } => cause.clone(),
            Self::Credentials(error) => error.to_string(),
        }
    }
}

/// Opens several connections to one address.
pub(super) async fn connect(
    address: &Address,
    connections: NonZeroUsize,
    credentials: &Credentials,
) -> Result<Vec<Transport>, ConnectError> {
    let tls = address.is_tls().then(|| credentials.tls()).transpose()?;
    let uri = address.uri().clone();
    let endpoint = if tls.is_some() { over_tls(uri) } else { Endpoint::from(uri) };
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(TCP_KEEPALIVE))
        .initial_connection_window_size(CONNECTION_WINDOW);
    let authorization = credentials.authorization()?;
    let open = async || match &tls {
        None => endpoint.connect().await,
        Some(tls) => endpoint.connect_with_connector(connector(tls.clone())).await,
    };
    let opened = try_join_all((0..connections.get()).map(|_| open())).await;
    let channels = opened.map_err(|error| ConnectError::Unreachable {
        address: address.clone(),
        cause: root_cause(&error),
    })?;
    let with_key = |channel| InterceptedService::new(channel, authorization.clone());
    Ok(channels.into_iter().map(with_key).collect())
}

/// Returns the endpoint of an `https` URL for a connector that brings TLS: tonic, built without its
/// own, refuses the scheme.
pub fn over_tls(secure: Uri) -> Endpoint {
    let mut parts = secure.clone().into_parts();
    parts.scheme = Some(http::uri::Scheme::HTTP);
    // All are parts of a URL that was parsed.
    let plain = Uri::from_parts(parts).unwrap_or_else(|_| secure.clone());
    Endpoint::from(plain).origin(secure)
}

/// Returns a connector with TLS, for any number of connections.
pub fn connector(
    tls: ClientTls,
) -> impl Service<
    Uri,
    Response = TokioIo<ClientStream>,
    Error = Box<dyn Error + Send + Sync>,
    Future: Send,
> + Send
+ 'static {
    service_fn(move |uri: Uri| {
        let tls = tls.clone();
        async move { Ok(TokioIo::new(dial(&tls, &uri).await?)) }
    })
}

/// Connects to the host and the port of `uri` over TLS.
pub async fn dial(tls: &ClientTls, uri: &Uri) -> io::Result<ClientStream> {
    let host = uri.host().unwrap_or_default();
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let tcp = TcpStream::connect((name, uri.port_u16().unwrap_or(443))).await?;
    tcp.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(TCP_KEEPALIVE);
    socket2::SockRef::from(&tcp).set_tcp_keepalive(&keepalive)?;
    tls.connect(name, tcp).await
}

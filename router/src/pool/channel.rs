//! The connection to a worker: one HTTP/2 connection that carries all of its streams.

use std::{error::Error, mem, time::Duration};

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use stoker_shared::{
    batched::Batched,
    client::{self, CONNECTION_WINDOW},
    tls::ClientTls,
};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::{Service, ServiceExt, service_fn};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval of HTTP/2 pings. With [`PING_TIMEOUT`], an unreachable worker is noticed within 15 s,
/// even without streams.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Flow-control window of a stream: the bytes buffered here for a client that does not read.
const STREAM_WINDOW: u32 = 32 << 10;

/// Connects to `host:port`, over `tls` if it is given. Without automatic reconnection: a new
/// connection might lead to another process, whose model info has not been requested yet. Requests
/// that are ready at once are sent in one write.
pub(crate) async fn connect(
    address: &str,
    tls: Option<&ClientTls>,
) -> Result<Channel, tonic::transport::Error> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let uri = Endpoint::from_shared(format!("{scheme}://{address}"))?.uri().clone();
    let Some(tls) = tls else {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        let tcp = tcp.map_response(|io| TokioIo::new(Batched::new(io.into_inner())));
        let tcp = tcp.map_err(Box::<dyn Error + Send + Sync>::from);
        return with_limits(Endpoint::from(uri)).connect_with_connector(once(tcp)).await;
    };
    let (tls, dialled) = (tls.clone(), uri.clone());
    let tcp = service_fn(move |_: Uri| {
        let (tls, dialled) = (tls.clone(), dialled.clone());
        async move {
            let stream = client::dial(&tls, &dialled).await?;
            Ok::<_, Box<dyn Error + Send + Sync>>(TokioIo::new(Batched::new(stream)))
        }
    });
    with_limits(client::over_tls(uri)).connect_with_connector(once(tcp)).await
}

/// Returns a connector that connects once.
fn once<C, T>(
    connector: C,
) -> impl Service<Uri, Response = T, Error = Box<dyn Error + Send + Sync>, Future: Send> + Send + 'static
where
    C: Service<Uri, Response = T, Error = Box<dyn Error + Send + Sync>, Future: Send>
        + Clone
        + Send
        + 'static,
    T: Send,
{
    let mut connected = false;
    service_fn(move |uri: Uri| {
        let connector = (!mem::replace(&mut connected, true)).then(|| connector.clone());
        async move {
            match connector {
                Some(connector) => connector.oneshot(uri).await,
                None => Err("the connection has ended".into()),
            }
        }
    })
}

fn with_limits(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // h2 counts frames that arrive for a cancelled stream as errors of the peer, and would
        // close the connection with all of its streams after 1,024 of them.
        .http2_max_local_error_reset_streams(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

    use super::*;

    /// A server at `address` until the sender is dropped.
    async fn server(address: &str) -> (String, oneshot::Sender<()>, JoinHandle<()>) {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (end, ended) = oneshot::channel::<()>();
        let (_, health) = tonic_health::server::health_reporter();
        let incoming = TcpListenerStream::new(listener);
        let serving = tonic::transport::Server::builder()
            .add_service(health)
            .serve_with_incoming_shutdown(incoming, async { drop(ended.await) });
        (address, end, tokio::spawn(async { serving.await.unwrap() }))
    }

    #[tokio::test]
    async fn a_channel_does_not_reconnect_to_a_later_server_at_the_address() {
        let (address, end, served) = server("127.0.0.1:0").await;
        let mut client = HealthClient::new(connect(&address, None).await.unwrap());
        client.check(HealthCheckRequest::default()).await.unwrap();
        drop(end);
        served.await.unwrap();
        let (_, _end, _served) = server(&address).await;
        for _ in 0..5 {
            let status = client.check(HealthCheckRequest::default()).await.unwrap_err();
            assert!(status.source().is_some(), "no server has responded: {status:?}");
        }
        let mut another = HealthClient::new(connect(&address, None).await.unwrap());
        another.check(HealthCheckRequest::default()).await.unwrap();
    }
}

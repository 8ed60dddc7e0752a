//! The connection to a worker: one HTTP/2 connection that carries all of its streams.

use std::{error::Error, mem, time::Duration};

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use stoker_shared::{batched::Batched, client::CONNECTION_WINDOW};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::{ServiceExt, service_fn};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval of HTTP/2 pings. With [`PING_TIMEOUT`], an unreachable worker is noticed within 15 s,
/// even without streams.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Flow-control window of a stream: the bytes buffered here for a client that does not read.
const STREAM_WINDOW: u32 = 32 << 10;

/// Connects to `host:port`, without automatic reconnection: a new connection might lead to another
/// process, whose model info has not been requested yet. Requests that are ready at once are sent
/// in one write.
pub(crate) async fn connect(address: &str) -> Result<Channel, tonic::transport::Error> {
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    let tcp = tcp.map_response(|io| TokioIo::new(Batched::new(io.into_inner())));
    let mut connected = false;
    let once = service_fn(move |uri: Uri| {
        let tcp = (!mem::replace(&mut connected, true)).then(|| tcp.clone());
        async move {
            match tcp {
                Some(tcp) => tcp.oneshot(uri).await.map_err(Box::<dyn Error + Send + Sync>::from),
                None => Err("the connection has ended".into()),
            }
        }
    });
    Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // h2 counts frames that arrive for a cancelled stream as errors of the peer, and would
        // close the connection with all of its streams after 1,024 of them.
        .http2_max_local_error_reset_streams(None)
        .connect_with_connector(once)
        .await
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
        let mut client = HealthClient::new(connect(&address).await.unwrap());
        client.check(HealthCheckRequest::default()).await.unwrap();
        drop(end);
        served.await.unwrap();
        let (_, _end, _served) = server(&address).await;
        for _ in 0..5 {
            let status = client.check(HealthCheckRequest::default()).await.unwrap_err();
            assert!(status.source().is_some(), "no server has responded: {status:?}");
        }
        let mut another = HealthClient::new(connect(&address).await.unwrap());
        another.check(HealthCheckRequest::default()).await.unwrap();
    }
}

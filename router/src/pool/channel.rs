//! The connection to a worker: one HTTP/2 connection that carries all of its streams.

use std::time::Duration;

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use stoker_shared::{batched::Batched, client::CONNECTION_WINDOW};
use tonic::transport::{Channel, Endpoint};
use tower::ServiceExt;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A worker that is gone without a word is noticed within 15 s, also while nothing is asked of it.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// What one client that does not read may keep in memory here, in bytes.
const STREAM_WINDOW: u32 = 32 << 10;

/// Connects to `host:port`. Requests that are ready at once leave in one write.
pub(crate) async fn connect(address: &str) -> Result<Channel, tonic::transport::Error> {
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    let tcp = tcp.map_response(|io| TokioIo::new(Batched::new(io.into_inner())));
    Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // Tokens that cross a cancellation on the way count as errors of the worker; after 1,024 of them h2
        // would close the connection under everybody else.
        .http2_max_local_error_reset_streams(None)
        .connect_with_connector(tcp)
        .await
}

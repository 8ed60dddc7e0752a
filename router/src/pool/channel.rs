//! The connection to a worker: one HTTP/2 connection that carries all of its streams.

use std::time::Duration;

use stoker_shared::client::CONNECTION_WINDOW;
use tonic::transport::{Channel, Endpoint};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A worker that is gone without a word is noticed within 15 s, also while nothing is asked of it.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// What one client that does not read may keep in memory here, in bytes.
const STREAM_WINDOW: u32 = 32 << 10;

/// Connects to `host:port`.
pub(crate) async fn connect(address: &str) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // Tokens that cross a cancellation on the way count as errors of the worker; after 1,024 of them h2
        // would close the connection under everybody else.
        .http2_max_local_error_reset_streams(None)
        .connect()
        .await
}

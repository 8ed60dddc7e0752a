//! The accept loop: limits open connections, and pauses after an error.

use std::{io, time::Duration};

use futures::{Stream, stream};
use tokio::time::{Instant, sleep};

use super::{Listener, accepted::Accepted, bounds::Bounds, connection::Connection};
use crate::batched::Batched;

/// Delay after an accept error, for instance too many open files, which lasts until a file is
/// closed.
const RETRY_DELAY: Duration = Duration::from_millis(250);
/// Minimum interval between warnings.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Accepts connections of `listener` within `bounds`. TCP_NODELAY is set, since tokens are small
/// and latency matters. Writes of streams that are ready at the same time are batched.
pub fn incoming<L: Into<Listener>>(
    listener: L,
    bounds: &Bounds,
) -> impl Stream<Item = io::Result<Batched<Connection<Accepted>>>> + use<L> {
    let state = (listener.into().into_parts(), bounds.clone(), None::<Instant>);
    stream::unfold(state, |((listener, tls), bounds, mut warned)| async move {
        let slot = bounds.acquire_slot().await;
        let (tcp, address) = loop {
            match listener.accept().await {
                Ok(accepted) => break accepted,
                // The peer closed the connection before it was accepted.
                Err(error) if is_peer_error(&error) => {}
                Err(error) => {
                    bounds.count_accept_error();
                    if warned.is_none_or(|at| at.elapsed() >= WARN_INTERVAL) {
                        tracing::warn!(%error, "cannot accept a connection; retrying");
                        warned = Some(Instant::now());
                    }
                    sleep(RETRY_DELAY).await;
                }
            }
        };
        // Fails only if the connection is already closed.
        let _ = tcp.set_nodelay(true);
        let (peer, open) = bounds.register_connection(address, slot);
        let accepted = Accepted::new(tcp, tls.clone(), peer.clone());
        let connection = Batched::new(Connection::new(accepted, peer, bounds.timeouts(), open));
        Some((Ok(connection), ((listener, tls), bounds, warned)))
    })
}

fn is_peer_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

//! The accept loop: within the limit on connections, with a pause after an error.

use std::{io, time::Duration};

use futures::{Stream, stream};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};

use super::{bounds::Bounds, connection::Connection};
use crate::batched::Batched;

/// After an error such as too many open files, which lasts until something is closed.
const PAUSE: Duration = Duration::from_millis(250);
/// The warning is repeated after this.
const WARN_AGAIN: Duration = Duration::from_secs(60);

/// Connections of `listener` within `bounds`, without Nagle's delay: tokens are small and late ones are felt. Those that
/// are ready at once leave in one write.
pub fn incoming(
    listener: TcpListener,
    bounds: &Bounds,
) -> impl Stream<Item = io::Result<Batched<Connection<TcpStream>>>> + use<> {
    let state = (listener, bounds.clone(), None::<Instant>);
    stream::unfold(state, |(listener, bounds, mut warned)| async move {
        let slot = bounds.slot().await;
        let (tcp, address) = loop {
            match listener.accept().await {
                Ok(accepted) => break accepted,
                // The peer changed its mind.
                Err(error) if is_of_peer(&error) => {}
                Err(error) => {
                    bounds.accept_failed();
                    if warned.is_none_or(|at| at.elapsed() >= WARN_AGAIN) {
                        tracing::warn!(%error, "no connection can be accepted; trying again");
                        warned = Some(Instant::now());
                    }
                    sleep(PAUSE).await;
                }
            }
        };
        // Fails only where the connection is gone already.
        let _ = tcp.set_nodelay(true);
        let (peer, open) = bounds.opened(address, slot);
        let connection = Batched::new(Connection::new(tcp, peer, bounds.timeouts(), open));
        Some((Ok(connection), (listener, bounds, warned)))
    })
}

fn is_of_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

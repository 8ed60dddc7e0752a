//! The time limits of an accepted connection, which is closed if the peer sends no preface or does
//! not read.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::coop,
    time::{Sleep, sleep},
};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;

use super::{
    accepted::HandshakeError,
    bounds::OpenConnection,
    peer::{Peer, Timeouts},
};

/// Length of the HTTP/2 connection preface, in bytes.
const PREFACE: usize = 24;

/// Number of bytes that count as one of the operations after which a task lets others run, of which
/// tokio permits 128. Frames that are cheap to send, and not to serve, then delay the calls of other
/// connections by little, and early resets are counted before the next ones are read.
const BYTES_PER_OPERATION: usize = 128;

/// Time that a peer has to close a connection that is closed on this side.
const LINGER: Duration = Duration::from_secs(1);
/// Maximum number of bytes that are read and dropped in that time.
const MAX_DISCARDED: usize = 1 << 20;

/// A connection with time limits. Dropping it frees its slot.
pub struct Connection<S> {
    io: S,
    peer: Peer,
    /// Number of bytes of the preface that have not been received.
    preface: usize,
    /// Time limit for the preface. `None` once it is complete.
    handshake: Option<Pin<Box<Sleep>>>,
    write_timeout: Duration,
    /// Time limit of the whole connection.
    age: Option<Pin<Box<Sleep>>>,
    /// Time until the next read, after the client has reset too many calls.
    pause: Option<Pin<Box<Sleep>>>,
    /// Whether there was such a pause.
    slowed: bool,
    /// Time limit of a stalled write. `None` while writes make progress.
    stalled: Option<Pin<Box<Sleep>>>,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Time limit for the peer to close the connection, and how many bytes it may still send, once
    /// this side is closed.
    linger: Option<(Pin<Box<Sleep>>, usize)>,
    open: OpenConnection,
}

impl<S> Connection<S> {
    pub(super) fn new(io: S, peer: Peer, timeouts: Timeouts, open: OpenConnection) -> Self {
        let closed = Box::pin(peer.closed().clone().cancelled_owned());
        Self {
            io,
            peer,
            preface: PREFACE,
            handshake: Some(Box::pin(sleep(timeouts.handshake))),
            write_timeout: timeouts.write,
            age: timeouts.age.map(|age| Box::pin(sleep(age))),
            pause: None,
            slowed: false,
            stalled: None,
            closed,
            linger: None,
            open,
        }
    }
}

impl<S: Unpin> Connection<S> {
    /// Fails a read or write of a connection whose preface takes too long.
    fn watch_handshake<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let Some(handshake) = &mut self.handshake else { return Poll::Pending };
        ready!(handshake.as_mut().poll(cx));
        self.open.count_closed("handshake");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no request was received")))
    }

    /// Waits while the client is to send less, since it resets many calls before they have a
    /// response: each costs more than the frames that it takes.
    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let Some(pause) = self.peer.pause() else { return Poll::Ready(()) };
            if !std::mem::replace(&mut self.slowed, true) {
                self.open.slowed(self.peer.address());
            }
            self.pause = Some(Box::pin(sleep(pause)));
        }
    }

    /// Reports an error of TLS.
    fn report<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| {
            if let Some(cause) = HandshakeError::of(error) {
                self.open.tls_failed(self.peer.address(), cause);
            }
        })
    }

    /// Fails a write that has been stalled for too long.
    fn watch_write<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(written) = written {
            self.stalled = None;
            return Poll::Ready(self.report(written));
        }
        if self.handshake.is_some() {
            // The peer has yet to complete its side of TLS.
            return self.watch_handshake(cx);
        }
        let timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(stalled.as_mut().poll(cx));
        self.open.count_closed("write_stall");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.closed.as_mut().poll(cx).is_ready() {
            // The end of the stream, as if the peer had closed it. The connection has no open
            // calls.
            return Poll::Ready(Ok(()));
        }
        if let Some(age) = &mut this.age
            && age.as_mut().poll(cx).is_ready()
        {
            this.age = None;
            this.open.count_closed("age");
            // Ends its calls too, which have had their grace.
            this.peer.close();
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(ended) = this.watch_handshake(cx) {
            return Poll::Ready(ended);
        }
        ready!(this.poll_pause(cx));
        let before = into.filled().len();
        let read = ready!(Pin::new(&mut this.io).poll_read(cx, into));
        this.report(read)?;
        let received = into.filled().len() - before;
        for _ in 0..received / BYTES_PER_OPERATION {
            // Beyond the last one, the next read waits.
            if let Poll::Ready(operation) = coop::poll_proceed(cx) {
                operation.made_progress();
            }
        }
        this.preface = this.preface.saturating_sub(received);
        if this.preface == 0 {
            this.handshake = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.watch_write(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.watch_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Closes the connection once the peer has closed its side, or after [`LINGER`]: a connection
    /// that is closed with unread bytes is reset, and the peer may lose the last bytes, for instance
    /// a GOAWAY that lets it send a call elsewhere.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        }
        let linger = this.linger.get_or_insert_with(|| (Box::pin(sleep(LINGER)), MAX_DISCARDED));
        let mut bytes = [0; 4096];
        while linger.1 > 0 && linger.0.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut this.io).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                break;
            }
            linger.1 = linger.1.saturating_sub(buffer.filled().len());
        }
        Poll::Ready(Ok(()))
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use std::future::poll_fn;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        time::{Instant, timeout},
    };

    use super::*;
    use crate::serve::{Bounds, LimitsConfig};

    /// Far beyond every limit: what takes longer has none.
    const HOUR: Duration = Duration::from_secs(3_600);

    /// A connection with a limit of one second for preface and writes, and its peer.
    async fn connected() -> (Connection<DuplexStream>, DuplexStream) {
        connected_with(64).await
    }

    /// The same, with room for `capacity` bytes in each direction.
    async fn connected_with(capacity: usize) -> (Connection<DuplexStream>, DuplexStream) {
        let second = Duration::from_secs(1);
        let bounds = Bounds::new(&LimitsConfig::default(), None);
        let slot = bounds.acquire_slot().await;
        let (peer, open) = bounds.register_connection(([127, 0, 0, 1], 1).into(), slot);
        let (server, client) = duplex(capacity);
        let timeouts = Timeouts { handshake: second, write: second, age: None };
        (Connection::new(server, peer, timeouts, open), client)
    }

    #[tokio::test(start_paused = true)]
    async fn a_preface_that_is_not_complete_ends_the_connection() {
        for received in [0, PREFACE - 1] {
            let (mut connection, mut client) = connected().await;
            client.write_all(&vec![7; received]).await.unwrap();
            let begun = Instant::now();
            let mut buffer = Vec::new();
            let read = timeout(HOUR, connection.read_to_end(&mut buffer)).await;
            let error = read.expect("a limit").unwrap_err();
            assert_eq!((error.kind(), buffer.len()), (io::ErrorKind::TimedOut, received));
            assert_eq!(begun.elapsed().as_secs(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_preface_a_peer_may_be_silent() {
        let (mut connection, mut client) = connected().await;
        client.write_all(&[7; PREFACE]).await.unwrap();
        let mut buffer = [0; PREFACE + 1];
        connection.read_exact(&mut buffer[..PREFACE]).await.unwrap();
        let read = connection.read_exact(&mut buffer[..1]);
        assert!(timeout(HOUR, read).await.is_err());
    }

    #[tokio::test]
    async fn other_tasks_run_between_the_parts_of_a_flood() {
        let (mut connection, mut client) = connected_with(1 << 20).await;
        client.write_all(&[7; 1 << 20]).await.unwrap();
        let one_turn = poll_fn(move |cx| {
            let (mut bytes, mut received) = ([0; 8 << 10], 0);
            loop {
                let mut buffer = ReadBuf::new(&mut bytes);
                match Pin::new(&mut connection).poll_read(cx, &mut buffer) {
                    Poll::Ready(read) => read.unwrap(),
                    Poll::Pending => return Poll::Ready(received),
                }
                received += buffer.filled().len();
            }
        });
        let received = tokio::spawn(one_turn).await.unwrap();
        assert!((1..=32 << 10).contains(&received), "{received}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_makes_no_progress_ends_the_connection() {
        let (mut connection, _client) = connected().await;
        connection.write_all(&[7; 64]).await.unwrap();
        let begun = Instant::now();
        let written = timeout(HOUR, connection.write_all(&[7])).await;
        let error = written.expect("a limit").unwrap_err();
        assert_eq!((error.kind(), begun.elapsed().as_secs()), (io::ErrorKind::TimedOut, 1));
    }
}

//! A connection that writes for many tasks at once.

use std::{
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// Writes of at least so many bytes do not wait: there is little to gain.
const LARGE: usize = 8 << 10;

/// Lets every task that can run do so before it writes. Tokens that arrive together, each for a stream of its
/// own, so leave together. Otherwise the first of these streams would wake the connection, which would write
/// one frame, and so on: a system call and a packet a token.
#[derive(Debug)]
pub struct Batched<S> {
    io: S,
    /// The others had their turn since the last write.
    waited: bool,
}

impl<S> Batched<S> {
    /// Batches what is written to `io`.
    pub fn new(io: S) -> Self {
        Self { io, waited: false }
    }
}

impl<S: Unpin> Batched<S> {
    /// Calls `write` for `bytes` bytes once the others had their turn.
    fn after_others<T>(
        &mut self,
        cx: &mut Context<'_>,
        bytes: usize,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if bytes < LARGE && !self.waited {
            self.waited = true;
            // Wakes this task behind all others. Unlike a wake of our own, it calls no other thread to help.
            ready!(pin!(tokio::task::yield_now()).poll(cx));
        }
        let written = ready!(write(Pin::new(&mut self.io), cx));
        self.waited = false;
        Poll::Ready(written)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Batched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.after_others(cx, bytes.len(), |io, cx| io.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        self.after_others(cx, bytes, |io, cx| io.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Batched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, into)
    }
}

impl<S: Connected> Connected for Batched<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::{Arc, Mutex};

    use futures::poll;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn tasks_that_can_run_do_so_before_a_small_write() {
        let (io, mut peer) = duplex(1 << 10);
        let queue = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&queue);
        let connection = tokio::spawn(async move {
            let mut io = Batched::new(io);
            // As h2 does: what is there when the write is made goes out with it.
            std::future::poll_fn(|cx| {
                let bytes = written.lock().unwrap().clone();
                Pin::new(&mut io).poll_write(cx, &bytes)
            })
            .await
            .unwrap()
        });
        for stream in 0..10 {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move { queue.lock().unwrap().push(stream) });
        }
        assert_eq!(connection.await.unwrap(), 10);
        let mut came = [0; 10];
        peer.read_exact(&mut came).await.unwrap();
        assert_eq!(came, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[tokio::test]
    async fn large_writes_do_not_wait_and_small_ones_wait_once_each() {
        let (io, _peer) = duplex(1 << 20);
        let mut io = Batched::new(io);
        assert!(poll!(pin!(io.write(&[0; LARGE]))).is_ready());
        for _ in 0..2 {
            assert!(poll!(pin!(io.write(&[0; LARGE - 1]))).is_pending());
            assert!(poll!(pin!(io.write(&[0; LARGE - 1]))).is_ready());
        }
    }

    #[tokio::test]
    async fn everything_arrives_through_a_narrow_pipe() {
        let (io, mut peer) = duplex(7);
        let sent: Vec<u8> = (0..=255).cycle().take(2 * LARGE).collect();
        let bytes = sent.clone();
        let writer = tokio::spawn(async move {
            let mut io = Batched::new(io);
            for part in bytes.chunks(1000) {
                io.write_all(part).await.unwrap();
            }
            io.shutdown().await.unwrap();
        });
        let mut came = Vec::new();
        peer.read_to_end(&mut came).await.unwrap();
        writer.await.unwrap();
        assert_eq!(came, sent);
    }
}

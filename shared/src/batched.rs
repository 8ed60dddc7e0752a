//! A connection that batches the writes of many tasks.

use std::{
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// Writes of at least this size, in bytes, are not delayed, since batching would gain little.
const LARGE_WRITE: usize = 8 << 10;

/// Yields to the other runnable tasks before a write, so that tokens that become available
/// together, each on a stream of its own, are sent in one write. Otherwise the first of these
/// streams would wake the connection, which would write one frame, and so on: a system call and a
/// packet per token.
#[derive(Debug)]
pub struct Batched<S> {
    io: S,
    /// Whether the connection has yielded since the last write.
    yielded: bool,
}

impl<S> Batched<S> {
    /// Batches writes to `io`.
    pub fn new(io: S) -> Self {
        Self { io, yielded: false }
    }
}

impl<S: Unpin> Batched<S> {
    /// Calls `write`, which has `bytes` bytes to write, after yielding to the other tasks.
    fn after_yield<T>(
        &mut self,
        cx: &mut Context<'_>,
        bytes: usize,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if bytes < LARGE_WRITE && !self.yielded {
            self.yielded = true;
            // Queues this task behind all others. Unlike `wake_by_ref`, it does not wake another
            // worker thread to steal it.
            ready!(pin!(tokio::task::yield_now()).poll(cx));
        }
        let written = ready!(write(Pin::new(&mut self.io), cx));
        self.yielded = false;
        Poll::Ready(written)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Batched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.after_yield(cx, bytes.len(), |io, cx| io.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        self.after_yield(cx, bytes, |io, cx| io.poll_write_vectored(cx, slices))
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
    async fn runnable_tasks_run_before_a_small_write() {
        let (io, mut peer) = duplex(1 << 10);
        let queue = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&queue);
        let connection = tokio::spawn(async move {
            let mut io = Batched::new(io);
            // As h2 does: a write sends everything that is queued when it is made.
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
        let mut received = [0; 10];
        peer.read_exact(&mut received).await.unwrap();
        assert_eq!(received, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[tokio::test]
    async fn large_writes_are_not_delayed_and_small_ones_yield_once_each() {
        let (io, _peer) = duplex(1 << 20);
        let mut io = Batched::new(io);
        assert!(poll!(pin!(io.write(&[0; LARGE_WRITE]))).is_ready());
        for _ in 0..2 {
            assert!(poll!(pin!(io.write(&[0; LARGE_WRITE - 1]))).is_pending());
            assert!(poll!(pin!(io.write(&[0; LARGE_WRITE - 1]))).is_ready());
        }
    }

    #[tokio::test]
    async fn all_bytes_pass_through_a_small_buffer() {
        let (io, mut peer) = duplex(7);
        let sent: Vec<u8> = (0..=255).cycle().take(2 * LARGE_WRITE).collect();
        let bytes = sent.clone();
        let writer = tokio::spawn(async move {
            let mut io = Batched::new(io);
            for chunk in bytes.chunks(1000) {
                io.write_all(chunk).await.unwrap();
            }
            io.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        peer.read_to_end(&mut received).await.unwrap();
        writer.await.unwrap();
        assert_eq!(received, sent);
    }
}

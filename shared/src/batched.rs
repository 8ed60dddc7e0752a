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
    fn write<T>(
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
        self.write(cx, bytes.len(), |io, cx| io.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        self.write(cx, bytes, |io, cx| io.poll_write_vectored(cx, slices))
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

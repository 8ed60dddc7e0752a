//! An accepted connection, with or without TLS.
//!
//! The handshake runs when the connection is first read, so that a slow one delays no other. A
//! client of the other kind, TLS or not, gets the reason in its own protocol.

use std::{
    io::{self, IoSlice},
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use super::peer::Peer;
use crate::{
    error::root_cause,
    tls::{Handshake, ServerStream, ServerTls},
};

/// First byte of a TLS connection: a record of a handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// Maximum number of bytes of a refused client that are read, so that it can read why.
const MAX_DISCARDED: usize = 64 << 10;

/// How long a refused client has to close the connection once its response is written.
const LINGER: Duration = Duration::from_secs(2);

/// Response to HTTP/1 on a port with TLS.
const NEEDS_TLS: &str = "this port speaks TLS: connect with https://";
/// Response to TLS on a port without.
const NEEDS_PLAIN: &str = "this port does not speak TLS: connect with http://";

/// A connection whose first bytes decide how it continues.
pub struct Accepted {
    state: State,
    peer: Peer,
}

enum State {
    /// Nothing was read.
    New(TcpStream, Option<ServerTls>),
    Plain(TcpStream),
    Handshake(Handshake),
    Tls(ServerStream),
    Refused(Refused),
    /// Between two states, and after an error.
    Closed,
}

/// A client that speaks another protocol than the port, or whose handshake failed.
struct Refused {
    tcp: TcpStream,
    response: Vec<u8>,
    written: usize,
    discarded: usize,
    /// Set once the response is written.
    linger: Option<Pin<Box<Sleep>>>,
    why: String,
}

/// Why a connection could not be established with TLS.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct HandshakeError(String);

impl HandshakeError {
    /// Returns the cause, if `error` is such an error.
    pub(super) fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    fn io(why: impl Into<String>) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, Self(why.into()))
    }
}

impl Accepted {
    pub(super) fn new(tcp: TcpStream, tls: Option<ServerTls>, peer: Peer) -> Self {
        Self { state: State::New(tcp, tls), peer }
    }

    /// Returns once bytes of the client's protocol can be read or written.
    fn poll_established(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.state {
                State::Plain(_) | State::Tls(_) => return Poll::Ready(Ok(())),
                State::Closed => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
                State::New(tcp, _) => {
                    let mut bytes = [0; 3];
                    let mut buffer = ReadBuf::new(&mut bytes);
                    ready!(tcp.poll_peek(cx, &mut buffer))?;
                    let first = buffer.filled().first().copied();
                    let is_http2 = buffer.filled() == b"PRI";
                    let State::New(tcp, tls) = mem::replace(&mut self.state, State::Closed) else {
                        continue;
                    };
                    self.state = match (tls, first) {
                        // Closed without a byte, as by a probe of a load balancer.
                        (_, None) => State::Plain(tcp),
                        (Some(tls), Some(TLS_HANDSHAKE)) => State::Handshake(tls.accept(tcp)),
                        (Some(_), _) => State::Refused(Refused::needs_tls(tcp, is_http2)),
                        (None, Some(TLS_HANDSHAKE)) => State::Refused(Refused::needs_plain(tcp)),
                        (None, _) => State::Plain(tcp),
                    };
                }
                State::Handshake(handshake) => {
                    let established = ready!(Pin::new(handshake).poll(cx));
                    match established {
                        Ok(stream) => {
                            if let Some(identity) = stream.identity() {
                                self.peer.identify(identity);
                            }
                            self.state = State::Tls(stream);
                        }
                        Err((error, tcp)) => {
                            self.state = State::Refused(Refused::failed(tcp, root_cause(&error)));
                        }
                    }
                }
                State::Refused(refused) => {
                    let error = ready!(refused.poll_end(cx));
                    self.state = State::Closed;
                    return Poll::Ready(Err(error));
                }
            }
        }
    }
}

impl Refused {
    fn needs_tls(tcp: TcpStream, is_http2: bool) -> Self {
        let response = if is_http2 { goaway(NEEDS_TLS) } else { bad_request(NEEDS_TLS) };
        Self::new(tcp, response, "the client does not speak TLS, and this port does")
    }

    fn needs_plain(tcp: TcpStream) -> Self {
        // Clients of TLS report what is not TLS as such.
        let response = bad_request(NEEDS_PLAIN);
        let why = "the client speaks TLS, and this port does not: set --tls-cert and --tls-key, or \
                   connect with http://";
        Self::new(tcp, response, why)
    }

    /// A client whose handshake failed, to which the alert is sent.
    fn failed(tcp: TcpStream, why: String) -> Self {
        Self::new(tcp, Vec::new(), why)
    }

    fn new(tcp: TcpStream, response: Vec<u8>, why: impl Into<String>) -> Self {
        Self { tcp, response, written: 0, discarded: 0, linger: None, why: why.into() }
    }

    /// Sends the response, and reads for a while what the client sends until it closes the
    /// connection: one that is closed with unread bytes is reset, and the response is lost. Returns
    /// why the client is refused, also where it resets the connection before.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let ended = ready!(self.poll_response(cx));
        if let Err(error) = ended {
            tracing::debug!(%error, "a refused client is gone before it has its response");
        }
        Poll::Ready(HandshakeError::io(mem::take(&mut self.why)))
    }

    fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.response.len() {
            match ready!(Pin::new(&mut self.tcp).poll_write(cx, &self.response[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        ready!(Pin::new(&mut self.tcp).poll_shutdown(cx))?;
        if self.linger.get_or_insert_with(|| Box::pin(sleep(LINGER))).as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut bytes = [0; 4096];
        while self.discarded < MAX_DISCARDED {
            let mut buffer = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                break;
            }
            self.discarded += buffer.filled().len();
        }
        Poll::Ready(Ok(()))
    }
}

/// Returns an HTTP/1.1 response.
fn bad_request(why: &str) -> Vec<u8> {
    let (head, length) = ("HTTP/1.1 400 Bad Request", why.len() + 1);
    let fields = "content-type: text/plain\r\nconnection: close";
    format!("{head}\r\n{fields}\r\ncontent-length: {length}\r\n\r\n{why}\n").into_bytes()
}

/// Returns the beginning of an HTTP/2 connection that ends at once: SETTINGS and GOAWAY, whose
/// debug data clients show.
fn goaway(why: &str) -> Vec<u8> {
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    const INADEQUATE_SECURITY: u32 = 12;
    let frame = |kind: u8, payload: &[u8]| {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, 0, 0, 0, 0, 0], payload].concat()
    };
    let payload =
        [&0_u32.to_be_bytes()[..], &INADEQUATE_SECURITY.to_be_bytes(), why.as_bytes()].concat();
    [frame(SETTINGS, &[]), frame(GOAWAY, &payload)].concat()
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_established(cx))?;
        match &mut self.state {
            State::Plain(tcp) => Pin::new(tcp).poll_read(cx, into),
            State::Tls(stream) => Pin::new(stream).poll_read(cx, into),
            _ => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // A server of HTTP/2 may write first.
        if let State::New(tcp, None) = &mut self.state {
            return Pin::new(tcp).poll_write(cx, bytes);
        }
        ready!(self.poll_established(cx))?;
        match &mut self.state {
            State::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            State::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            _ => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A server of HTTP/2 may write first.
        if let State::New(tcp, None) = &mut self.state {
            return Pin::new(tcp).poll_write_vectored(cx, slices);
        }
        ready!(self.poll_established(cx))?;
        match &mut self.state {
            State::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
            State::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            _ => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        // Both kinds of connections write slices together.
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Plain(tcp) | State::New(tcp, None) => Pin::new(tcp).poll_flush(cx),
            State::Tls(stream) => Pin::new(stream).poll_flush(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Plain(tcp) | State::New(tcp, _) => Pin::new(tcp).poll_shutdown(cx),
            State::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            _ => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::future::poll_fn;

    use tokio::{io::AsyncReadExt, net::TcpListener, time::timeout};

    use super::*;

    #[tokio::test]
    async fn a_refused_client_that_resets_its_connection_is_known_as_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for refused in [Refused::needs_tls, |tcp, _| Refused::failed(tcp, "expired".to_owned())] {
            let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (mut tcp, _) = listener.accept().await.unwrap();
            client.set_zero_linger().unwrap();
            drop(client);
            let reset = tcp.read_u8().await.unwrap_err();
            assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
            let mut refused: Refused = refused(tcp, true);
            let error = poll_fn(|cx| refused.poll_end(cx)).await;
            assert!(HandshakeError::of(&error).is_some(), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_client_that_keeps_its_connection_open_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (tcp, _) = listener.accept().await.unwrap();
        let mut refused = Refused::needs_tls(tcp, false);
        let end = timeout(LINGER * 2, poll_fn(|cx| refused.poll_end(cx)));
        assert!(HandshakeError::of(&end.await.unwrap()).is_some());
    }
}

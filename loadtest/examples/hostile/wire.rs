//! A connection on which any bytes can be sent, and what the server sends on it.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    attack::{Context, Ending},
    http2::{FRAME_HEADER, flag, frame, kind},
    tally::Tally,
};

/// Time limit for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A server that does not read for this long has stopped reading.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long further responses over HTTP/1.1 are awaited after the first one.
const FURTHER_RESPONSES: Duration = Duration::from_millis(200);

/// A connection.
pub struct Wire {
    socket: TcpStream,
    tally: Arc<Tally>,
}

impl Wire {
    /// Connects without sending anything.
    pub async fn connect(cx: &Context) -> Result<Self, Ending> {
        let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(cx.address)).await;
        Self::from(cx, connected.ok().and_then(Result::ok))
    }

    /// Connects with a receive buffer that is as small as the system permits.
    pub async fn connect_narrow(cx: &Context) -> Result<Self, Ending> {
        let connect = async {
            let v4 = cx.address.is_ipv4();
            let socket = if v4 { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.set_recv_buffer_size(1)?;
            socket.connect(cx.address).await
        };
        let connected = timeout(CONNECT_TIMEOUT, connect).await;
        Self::from(cx, connected.ok().and_then(Result::ok))
    }

    fn from(cx: &Context, socket: Option<TcpStream>) -> Result<Self, Ending> {
        let socket = socket.ok_or(Ending::NotConnected)?;
        // Bytes that are sent one by one are to arrive one by one.
        let _ = socket.set_nodelay(true);
        cx.tally.connected();
        Ok(Self { socket, tally: Arc::clone(&cx.tally) })
    }

    /// Sends bytes. Returns `false` if the server has closed the connection or does not read.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        let sent = timeout(SEND_TIMEOUT, self.socket.write_all(bytes)).await;
        let sent = matches!(sent, Ok(Ok(())));
        if sent {
            self.tally.sent(bytes.len());
        }
        sent
    }

    /// Sends bytes one by one, with a pause after each, for at most `longest`, or until the server
    /// closes the connection.
    pub async fn trickle(&mut self, bytes: &[u8], pause: Duration, longest: Duration) {
        let end = Instant::now() + longest;
        for byte in bytes {
            if !self.send(&[*byte]).await || Instant::now() >= end {
                return;
            }
            sleep(pause).await;
        }
    }

    /// Reads nothing for this long.
    pub async fn hold(&self, time: Duration) {
        sleep(time).await;
    }

    /// Says that nothing more will be sent.
    pub async fn finish(&mut self) {
        let _ = self.socket.shutdown().await;
    }

    /// Reads until the server ends the connection or a stream, or `patience` is over.
    pub async fn ending(mut self, patience: Duration) -> Ending {
        let mut received = Received::default();
        let mut deadline = Instant::now() + patience;
        let mut buffer = vec![0; 16 << 10];
        loop {
            let read = timeout_at(deadline, self.socket.read(&mut buffer)).await;
            let bytes = match read {
                Err(_) => return received.ending(Ending::LeftOpen),
                Ok(Err(_)) => return received.ending(Ending::Reset),
                Ok(Ok(0)) => return received.ending(Ending::Closed),
                Ok(Ok(bytes)) => bytes,
            };
            self.tally.received(bytes);
            let first = received.responses == 0;
            if received.add(&buffer[..bytes]) {
                return received.ending(Ending::Closed);
            }
            // A peer that is silent on everything else may be alive.
            for ping in std::mem::take(&mut received.pings) {
                self.send(&frame(kind::PING, flag::ACK, 0, &ping)).await;
            }
            if first && received.responses > 0 {
                deadline = deadline.min(Instant::now() + FURTHER_RESPONSES);
            }
        }
    }
}

/// What a server has sent.
#[derive(Debug, Default)]
struct Received {
    /// Bytes of a frame that is not complete.
    rest: Vec<u8>,
    frame: Option<Ending>,
    /// Payloads of pings that were not acknowledged.
    pings: Vec<Vec<u8>>,
    is_http1: bool,
    status: u16,
    responses: usize,
}

impl Received {
    /// Adds bytes. Returns whether they end the attempt.
    fn add(&mut self, bytes: &[u8]) -> bool {
        self.rest.extend_from_slice(bytes);
        if self.is_http1 || self.rest.starts_with(b"HTTP/1.") {
            self.is_http1 = true;
            self.read_statuses();
            return false;
        }
        while let Some((kind, flags, payload)) = self.next_frame() {
            let code = |at: usize| {
                let bytes = payload.get(at..at + 4).and_then(|code| code.try_into().ok());
                bytes.map_or(u32::MAX, u32::from_be_bytes)
            };
            let ending = match kind {
                kind::GO_AWAY => Ending::GoAway(code(4)),
                kind::RESET => Ending::StreamReset(code(0)),
                kind::HEADERS | kind::DATA if flags & flag::END_STREAM != 0 => Ending::Response,
                kind::PING if flags & flag::ACK == 0 => {
                    self.pings.push(payload);
                    continue;
                }
                _ => continue,
            };
            self.frame = Some(ending);
        }
        self.frame.is_some_and(|ending| ending != Ending::GoAway(0))
    }

    fn next_frame(&mut self) -> Option<(u8, u8, Vec<u8>)> {
        let [a, b, c, kind, flags, ..] = *self.rest.first_chunk::<FRAME_HEADER>()?;
        let end = FRAME_HEADER + u32::from_be_bytes([0, a, b, c]) as usize;
        let payload = self.rest.get(FRAME_HEADER..end)?.to_vec();
        self.rest.drain(..end);
        Some((kind, flags, payload))
    }

    /// Counts the status lines that have arrived. One that is split over two reads is found with
    /// the second one.
    fn read_statuses(&mut self) {
        const LINE: &[u8] = b"HTTP/1.1 ";
        while let Some(at) = self.rest.windows(LINE.len()).position(|window| window == LINE) {
            let digits = at + LINE.len();
            let Some(status) = self.rest.get(digits..digits + 3) else { return };
            if self.responses == 0 {
                let status = std::str::from_utf8(status).ok().and_then(|text| text.parse().ok());
                self.status = status.unwrap_or_default();
            }
            self.responses += 1;
            self.rest.drain(..digits + 3);
        }
        let kept = self.rest.len().min(LINE.len() + 3);
        self.rest.drain(..self.rest.len() - kept);
    }

    fn ending(&self, otherwise: Ending) -> Ending {
        match (self.responses, self.frame) {
            (0, frame) => frame.unwrap_or(otherwise),
            (responses, _) => Ending::Http { status: self.status, responses },
        }
    }
}

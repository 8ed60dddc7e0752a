//! Hand-written HTTP/2, for bytes that no client library would send.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::TEST_TIMEOUT;

/// The connection preface of a client.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Default of SETTINGS_MAX_FRAME_SIZE, in bytes.
pub const MAX_FRAME: usize = 1 << 14;

/// Frame types with their numbers in RFC 9113.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    Data = 0,
    Headers = 1,
    Reset = 3,
    Settings = 4,
    Ping = 6,
    GoAway = 7,
    WindowUpdate = 8,
    Continuation = 9,
}

/// Flags of frames. Their meaning depends on the frame type.
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// How a server ends a connection, or the only stream on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It sends GOAWAY with this code and closes.
    GoAway(u32),
    /// It resets the stream, with this code.
    Reset(u32),
    /// It closes or resets the connection without a frame.
    Closed,
}

/// A frame with its header.
pub fn frame(kind: FrameKind, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    raw_frame(kind as u8, flags, stream, payload.len(), payload)
}

/// A frame whose header may have any type and length.
pub fn raw_frame(kind: u8, flags: u8, stream: u32, length: usize, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(length).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The uncompressed header block of a call to Generate.
pub fn call_headers() -> Vec<u8> {
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/stoker.v1.Inference/Generate"),
        (":authority", "stoker"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
    .into_iter()
    .flat_map(|(name, value)| {
        // A literal without indexing and with a new name; both strings are shorter than 127 bytes.
        let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        [vec![0], text(name), text(value)].concat()
    })
    .collect()
}

/// A gRPC message with its 5-byte prefix of `flag` and `length`.
pub fn message(flag: u8, length: usize, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(length).unwrap().to_be_bytes();
    [&[flag], &length[..], bytes].concat()
}

/// A connection on which any bytes can be sent.
pub struct Wire(pub TcpStream);

impl Wire {
    /// Connects without sending anything.
    pub async fn silent(address: &str) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    /// Connects as a client, with these settings.
    pub async fn with_settings(address: &str, settings: &[(u16, u32)]) -> Self {
        let mut wire = Self::silent(address).await;
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        wire.send(PREFACE).await;
        wire.send(&frame(FrameKind::Settings, 0, 0, &payload)).await;
        wire
    }

    /// Connects as a client.
    pub async fn new(address: &str) -> Self {
        Self::with_settings(address, &[]).await
    }

    /// Sends bytes. Returns `false` if the server has closed the connection or does not read.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        // A server that does not read for this long counts as closed.
        let sent = timeout(Duration::from_secs(10), self.0.write_all(bytes)).await;
        matches!(sent, Ok(Ok(())))
    }

    /// Reads until the server ends the connection or a stream.
    pub async fn ending(&mut self) -> Ending {
        let mut ending = Ending::Closed;
        let code = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
        let read = async {
            while let Ok((kind, payload)) = self.read_frame().await {
                if kind == FrameKind::GoAway as u8 {
                    ending = Ending::GoAway(code(&payload[4..8]));
                } else if kind == FrameKind::Reset as u8 {
                    ending = Ending::Reset(code(&payload));
                    break;
                }
            }
        };
        timeout(TEST_TIMEOUT, read).await.expect("the connection stays open");
        ending
    }

    async fn read_frame(&mut self) -> std::io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).await?;
        Ok((head[3], payload))
    }
}

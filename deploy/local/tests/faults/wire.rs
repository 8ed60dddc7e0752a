//! HTTP/2 by hand: what no library of ours would send.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::TEST_TIMEOUT;

/// What a client says first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The longest frame that a server takes unless it says otherwise, in bytes.
pub const MAX_FRAME: usize = 1 << 14;

/// A kind of frame, as RFC 9113 numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Data = 0,
    Headers = 1,
    Reset = 3,
    Settings = 4,
    Ping = 6,
    GoAway = 7,
    WindowUpdate = 8,
    Continuation = 9,
}

/// Flags of frames. Which is which depends on the kind.
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// How a server ends a connection, or the only stream on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It says why, with this code, and closes.
    GoAway(u32),
    /// It resets the stream, with this code.
    Reset(u32),
    /// It just closes, or resets.
    Closed,
}

/// A frame with its head.
pub fn frame(kind: Kind, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    raw_frame(kind as u8, flags, stream, payload.len(), payload)
}

/// A frame whose head may say anything.
pub fn raw_frame(kind: u8, flags: u8, stream: u32, length: usize, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(length).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The headers of a call to Generate, none of them compressed.
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
        // A literal that is not indexed, with a new name; both are shorter than 127 bytes.
        let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        [vec![0], text(name), text(value)].concat()
    })
    .collect()
}

/// A message as gRPC frames it.
pub fn message(flag: u8, length: usize, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(length).unwrap().to_be_bytes();
    [&[flag], &length[..], bytes].concat()
}

/// A connection on which anything can be said.
pub struct Wire(pub TcpStream);

impl Wire {
    /// Connects, and says nothing.
    pub async fn silent(address: &str) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    /// Connects as a client would, with these settings.
    pub async fn with_settings(address: &str, settings: &[(u16, u32)]) -> Self {
        let mut wire = Self::silent(address).await;
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        wire.say(PREFACE).await;
        wire.say(&frame(Kind::Settings, 0, 0, &payload)).await;
        wire
    }

    /// Connects as a client would.
    pub async fn new(address: &str) -> Self {
        Self::with_settings(address, &[]).await
    }

    /// Says anything. A server that has gone already hears nothing of it.
    pub async fn say(&mut self, bytes: &[u8]) -> bool {
        // One that has left us with a full buffer has gone too.
        let said = timeout(Duration::from_secs(10), self.0.write_all(bytes)).await;
        matches!(said, Ok(Ok(())))
    }

    /// Reads until the server ends the connection, or a stream.
    pub async fn ending(&mut self) -> Ending {
        let mut ending = Ending::Closed;
        let code = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
        let read = async {
            while let Ok((kind, payload)) = self.read_frame().await {
                if kind == Kind::GoAway as u8 {
                    ending = Ending::GoAway(code(&payload[4..8]));
                } else if kind == Kind::Reset as u8 {
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

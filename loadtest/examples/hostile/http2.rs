//! HTTP/2 by hand, for bytes that no client library would send.

/// The connection preface of a client.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Default of SETTINGS_MAX_FRAME_SIZE, in bytes.
pub const MAX_FRAME: usize = 1 << 14;
/// Length of the header of a frame, in bytes.
pub const FRAME_HEADER: usize = 9;
/// Identifier of SETTINGS_INITIAL_WINDOW_SIZE.
pub const INITIAL_WINDOW_SIZE: u16 = 4;

/// Numbers of frame types in RFC 9113.
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RESET: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GO_AWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames. Their meaning depends on the frame type.
pub mod flag {
    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
}

/// Returns a frame with its header.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    raw_frame(kind, flags, stream, payload.len(), payload)
}

/// Returns a frame whose header may have any type and length, of which 24 bits are sent.
pub fn raw_frame(kind: u8, flags: u8, stream: u32, length: usize, payload: &[u8]) -> Vec<u8> {
    let length = (length as u32).to_be_bytes();
    let mut bytes = Vec::with_capacity(FRAME_HEADER + payload.len());
    bytes.extend(&length[1..]);
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Returns a SETTINGS frame.
pub fn settings(pairs: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = pairs
        .iter()
        .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    frame(kind::SETTINGS, 0, 0, &payload)
}

/// Returns the first bytes of a client: preface and settings.
pub fn opening(pairs: &[(u16, u32)]) -> Vec<u8> {
    [PREFACE, &settings(pairs)].concat()
}

/// Returns a header that is not added to the table (RFC 7541), its strings without Huffman coding.
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    [vec![0], string(name.as_bytes()), string(value.as_bytes())].concat()
}

/// Returns a string of a header block.
pub fn string(bytes: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::new();
    let mut rest = bytes.len();
    if rest < 127 {
        encoded.push(rest as u8);
    } else {
        encoded.push(127);
        rest -= 127;
        while rest >= 128 {
            encoded.push((rest % 128) as u8 | 128);
            rest /= 128;
        }
        encoded.push(rest as u8);
    }
    encoded.extend(bytes);
    encoded
}

/// Returns the header block of a gRPC call.
pub fn call_headers(path: &str) -> Vec<u8> {
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "stoker"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
    .into_iter()
    .flat_map(|(name, value)| literal(name, value))
    .collect()
}

/// Returns a gRPC message with its prefix, a flag and a length, which may be wrong.
pub fn message(flag: u8, length: usize, bytes: &[u8]) -> Vec<u8> {
    [&[flag][..], &(length as u32).to_be_bytes(), bytes].concat()
}

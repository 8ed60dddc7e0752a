//! Connections that are opened and not used, and responses that are not read.

use std::time::Duration;

use rand::{RngExt, rngs::StdRng};

use super::{GENERATE, json};
use crate::{
    attack::{Attack, Context, Ending, Role, Scope},
    http2::{INITIAL_WINDOW_SIZE, PREFACE, call_headers, flag, frame, kind, message, opening},
    wire::Wire,
};

const FAMILY: &str = "half-open";
/// How long an unfinished connection is kept. Servers close it earlier: pings that are not
/// acknowledged end it after 40 s.
const KEPT: Duration = Duration::from_secs(50);

/// The attacks of this file.
pub const ATTACKS: &[Attack] = &[
    Attack {
        family: FAMILY,
        name: "silent connections",
        scope: Scope::All,
        per_second: 8.0,
        concurrency: 64,
        attempt: |cx| Box::pin(unfinished(cx, |_, _| Vec::new())),
    },
    Attack {
        family: FAMILY,
        name: "half a preface",
        scope: Scope::All,
        per_second: 4.0,
        concurrency: 32,
        attempt: |cx| Box::pin(unfinished(cx, half_preface)),
    },
    Attack {
        family: FAMILY,
        name: "half a TLS handshake",
        scope: Scope::All,
        per_second: 4.0,
        concurrency: 32,
        attempt: |cx| Box::pin(unfinished(cx, half_client_hello)),
    },
    Attack {
        family: FAMILY,
        name: "half a request",
        scope: Scope::All,
        per_second: 4.0,
        concurrency: 32,
        attempt: |cx| Box::pin(unfinished(cx, half_request)),
    },
    Attack {
        family: FAMILY,
        name: "unread responses",
        scope: Scope::All,
        per_second: 0.5,
        concurrency: 8,
        attempt: |cx| Box::pin(unread(cx)),
    },
    Attack {
        family: FAMILY,
        name: "no window for responses",
        scope: Scope::Grpc,
        per_second: 0.5,
        concurrency: 8,
        attempt: |cx| Box::pin(no_window(cx)),
    },
];

async fn unfinished(mut cx: Context, bytes: fn(&mut StdRng, Role) -> Vec<u8>) -> Ending {
    let mut wire = match Wire::connect(&cx).await {
        Ok(wire) => wire,
        Err(ending) => return ending,
    };
    let bytes = bytes(&mut cx.rng, cx.role);
    if !bytes.is_empty() {
        wire.send(&bytes).await;
    }
    wire.ending(KEPT).await
}

fn half_preface(rng: &mut StdRng, _: Role) -> Vec<u8> {
    PREFACE[..rng.random_range(1..PREFACE.len())].to_vec()
}

/// The first bytes of a ClientHello, which announce more than follows.
fn half_client_hello(rng: &mut StdRng, _: Role) -> Vec<u8> {
    let mut bytes = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    bytes.extend((0..rng.random_range(0..200)).map(|_| rng.random::<u8>()));
    bytes
}

fn half_request(rng: &mut StdRng, role: Role) -> Vec<u8> {
    if role == Role::Http && rng.random() {
        let mut bytes = json::post("/v1/completions", &b"{\"prompt\": \"x\"}".repeat(10));
        bytes.truncate(rng.random_range(20..bytes.len()));
        return bytes;
    }
    let headers = call_headers(GENERATE);
    let open = frame(kind::HEADERS, flag::END_HEADERS, 1, &headers);
    let request = match rng.random_range(0..3) {
        // Headers that do not end, a call without its message, and half of a message.
        0 => frame(kind::HEADERS, 0, 1, &headers),
        1 => open,
        _ => [open, frame(kind::DATA, 0, 1, &message(0, 1 << 20, &[0x1a; 100]))].concat(),
    };
    [opening(&[]), request].concat()
}

/// Sends many small requests on a connection with a small buffer, and reads no response.
async fn unread(cx: Context) -> Ending {
    let mut wire = match Wire::connect_narrow(&cx).await {
        Ok(wire) => wire,
        Err(ending) => return ending,
    };
    let requests = if cx.role == Role::Http {
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n".repeat(5_000)
    } else {
        [opening(&[]), frame(kind::PING, 0, 0, &[0; 8]).repeat(10_000)].concat()
    };
    wire.send(&requests).await;
    wire.hold(KEPT / 2).await;
    wire.ending(KEPT / 2).await
}

/// Requests tokens, and permits none of them to be sent.
async fn no_window(mut cx: Context) -> Ending {
    let mut wire = match Wire::connect(&cx).await {
        Ok(wire) => wire,
        Err(ending) => return ending,
    };
    let window = cx.rng.random_range(0..2);
    let mut bytes = opening(&[(INITIAL_WINDOW_SIZE, window)]);
    // Field 3, the prompt; field 7, which has field 1, the number of tokens.
    let request = [0x1a, 4, b'O', b'n', b'c', b'e', 0x3a, 2, 0x08, 32];
    for stream in [1, 3, 5, 7] {
        bytes.extend(frame(kind::HEADERS, flag::END_HEADERS, stream, &call_headers(GENERATE)));
        bytes.extend(frame(
            kind::DATA,
            flag::END_STREAM,
            stream,
            &message(0, request.len(), &request),
        ));
    }
    wire.send(&bytes).await;
    wire.ending(KEPT).await
}

//! Requests that arrive a byte a second, and responses that are read a byte at a time.

use std::time::Duration;

use rand::RngExt;

use super::{GENERATE, json};
use crate::{
    attack::{Attack, Context, Ending, Scope},
    http2::{INITIAL_WINDOW_SIZE, call_headers, flag, frame, kind, message, opening},
    wire::Wire,
};

const FAMILY: &str = "slow";
/// Time between two bytes.
const PAUSE: Duration = Duration::from_secs(1);
/// How long bytes are sent. Servers end it earlier.
const LONGEST: Duration = Duration::from_secs(60);
/// How long an end is awaited when the last byte was sent.
const PATIENCE: Duration = Duration::from_secs(2);

/// The attacks of this file.
pub const ATTACKS: &[Attack] = &[
    Attack {
        family: FAMILY,
        name: "slow headers over HTTP/1.1",
        scope: Scope::Http,
        per_second: 2.0,
        concurrency: 32,
        attempt: |cx| Box::pin(http1(cx, 20)),
    },
    Attack {
        family: FAMILY,
        name: "slow body over HTTP/1.1",
        scope: Scope::Http,
        per_second: 2.0,
        concurrency: 32,
        attempt: |cx| Box::pin(http1(cx, 110)),
    },
    Attack {
        family: FAMILY,
        name: "slow preface and headers over HTTP/2",
        scope: Scope::All,
        per_second: 2.0,
        concurrency: 32,
        attempt: |cx| Box::pin(http2_headers(cx)),
    },
    Attack {
        family: FAMILY,
        name: "slow body over HTTP/2",
        scope: Scope::All,
        per_second: 2.0,
        concurrency: 32,
        attempt: |cx| Box::pin(http2_body(cx)),
    },
    Attack {
        family: FAMILY,
        name: "window of one byte",
        scope: Scope::Grpc,
        per_second: 0.5,
        concurrency: 8,
        attempt: |cx| Box::pin(one_byte_window(cx)),
    },
];

/// Sends the bytes of a request after `at` one by one.
async fn http1(cx: Context, at: usize) -> Ending {
    let mut wire = match Wire::connect(&cx).await {
        Ok(wire) => wire,
        Err(ending) => return ending,
    };
    let body = format!("{{\"prompt\": \"{}\"}}", "x".repeat(500));
    let request = json::post("/v1/completions", body.as_bytes());
    wire.send(&request[..at]).await;
    wire.trickle(&request[at..], PAUSE, LONGEST).await;
    wire.ending(PATIENCE).await
}

async fn http2_headers(mut cx: Context) -> Ending {
    let mut wire = match Wire::connect(&cx).await {
        Ok(wire) => wire,
        Err(ending) => return ending,
    };
    let headers = frame(kind::HEADERS, flag::END_HEADERS, 1, &call_headers(GENERATE));
    let bytes = [opening(&[]), headers].concat();
    // From the preface on, or from the headers on.
    let at = if cx.rng.random() { 0 } else { opening(&[]).len() };
    if at > 0 {
        wire.send(&bytes[..at]).await;
    }
    wire.trickle(&bytes[at..], PAUSE, LONGEST).await;
    wire.ending(PATIENCE).await
}

/// Sends a message in frames of one byte.
async fn http2_body(cx: Context) -> Ending {
    let mut wire = match Wire::connect(&cx).await {
        Ok(wire) => wire,
        Err(ending) => return ending,
    };
    let headers = frame(kind::HEADERS, flag::END_HEADERS, 1, &call_headers(GENERATE));
    wire.send(&[opening(&[]), headers].concat()).await;
    for byte in message(0, 1_000, &[0x1a; 60]) {
        if !wire.send(&frame(kind::DATA, 0, 1, &[byte])).await {
            break;
        }
        wire.hold(PAUSE).await;
    }
    wire.ending(PATIENCE).await
}

/// Permits a byte of a response at a time.
async fn one_byte_window(cx: Context) -> Ending {
    let mut wire = match Wire::connect(&cx).await {
        Ok(wire) => wire,
        Err(ending) => return ending,
    };
    let request = [0x1a, 4, b'O', b'n', b'c', b'e', 0x3a, 2, 0x08, 32];
    let bytes = [
        opening(&[(INITIAL_WINDOW_SIZE, 1)]),
        frame(kind::HEADERS, flag::END_HEADERS, 1, &call_headers(GENERATE)),
        frame(kind::DATA, flag::END_STREAM, 1, &message(0, request.len(), &request)),
    ];
    wire.send(&bytes.concat()).await;
    for _ in 0..600 {
        if !wire.send(&frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])).await {
            break;
        }
        wire.hold(Duration::from_millis(100)).await;
    }
    wire.ending(PATIENCE).await
}

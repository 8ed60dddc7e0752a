//! HTTP/1.1 whose length is ambiguous (request smuggling), whose chunks are malformed, or whose first
//! lines are.

use rand::{RngExt, rngs::StdRng};

use super::{PATIENCE, random_bytes};
use crate::{
    attack::{Attack, Context, Ending, Scope},
    wire::Wire,
};

const FAMILY: &str = "wrong types";

/// The attacks of this file.
pub const ATTACKS: &[Attack] = &[
    Attack {
        family: FAMILY,
        name: "request smuggling",
        scope: Scope::Http,
        per_second: 8.0,
        concurrency: 64,
        attempt: |cx| Box::pin(send(cx, smuggled)),
    },
    Attack {
        family: FAMILY,
        name: "malformed chunks",
        scope: Scope::Http,
        per_second: 6.0,
        concurrency: 64,
        attempt: |cx| Box::pin(send(cx, chunks)),
    },
    Attack {
        family: FAMILY,
        name: "malformed HTTP/1.1",
        scope: Scope::Http,
        per_second: 6.0,
        concurrency: 64,
        attempt: |cx| Box::pin(send(cx, lines)),
    },
];

async fn send(mut cx: Context, bytes: fn(&mut StdRng) -> Vec<u8>) -> Ending {
    let bytes = bytes(&mut cx.rng);
    let mut wire = match Wire::connect(&cx).await {
        Ok(wire) => wire,
        Err(ending) => return ending,
    };
    wire.send(&bytes).await;
    wire.ending(PATIENCE).await
}

/// Returns a request with these lines among its headers.
fn post(lines: &str, body: &str) -> Vec<u8> {
    format!(
        "POST /v1/completions HTTP/1.1\r\nhost: stoker\r\ncontent-type: application/json\r\n{lines}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// One request whose end is where the reader of its headers believes it to be. Two responses mean that
/// what one reader takes for a body, another takes for a request.
fn smuggled(rng: &mut StdRng) -> Vec<u8> {
    let inner = "GET /smuggled HTTP/1.1\r\nhost: stoker\r\n\r\n";
    let (length, zero) = (inner.len(), format!("0\r\n\r\n{inner}"));
    match rng.random_range(0..12) {
        // Both lengths, in either order.
        0 => post(&format!("content-length: {}\r\ntransfer-encoding: chunked", zero.len()), &zero),
        1 => post("transfer-encoding: chunked\r\ncontent-length: 4", &zero),
        // Two lengths that differ, and two that do not.
        2 => post(&format!("content-length: {length}\r\ncontent-length: 0"), inner),
        3 => post(&format!("content-length: 0, {length}"), inner),
        4 => post("content-length: 2\r\ncontent-length: 2", "{}"),
        // Encodings that are not quite chunked.
        5 => post("transfer-encoding: xchunked", &zero),
        6 => post("transfer-encoding: chunked\r\ntransfer-encoding: identity", &zero),
        7 => post("transfer-encoding : chunked", &zero),
        8 => post("transfer-encoding:\u{b}chunked", &zero),
        9 => post(&format!("content-length: +{length}"), inner),
        10 => post(&format!("x: y\r\n content-length: {length}"), inner),
        _ => post("content-length: 0x10", inner),
    }
}

fn chunks(rng: &mut StdRng) -> Vec<u8> {
    let body = match rng.random_range(0..9) {
        0 => "zz\r\nabc\r\n0\r\n\r\n".into(),
        1 => "-1\r\nabc\r\n0\r\n\r\n".into(),
        2 => "ffffffffffffffffff\r\nabc".into(),
        3 => "3\r\nabcdef\r\n0\r\n\r\n".into(),
        4 => format!("3;{}\r\nabc\r\n0\r\n\r\n", "x=y;".repeat(20_000)),
        5 => "1\r\nx\r\n".repeat(50_000),
        6 => format!("0\r\n{}\r\n", "x-trailer: y\r\n".repeat(20_000)),
        7 => "3\nabc\n0\n\n".into(),
        _ => "\r\n\r\n".into(),
    };
    post("transfer-encoding: chunked", &body)
}

fn lines(rng: &mut StdRng) -> Vec<u8> {
    match rng.random_range(0..12) {
        0 => b"GET /\r\n\r\n".to_vec(),
        1 => b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        2 => b"GET http://[::1 HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        3 => format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(200_000)).into_bytes(),
        4 => format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(5_000)).into_bytes(),
        5 => format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(1 << 20)).into_bytes(),
        6 => b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n".to_vec(),
        7 => b"GET /v1/models/%ff%00%2e%2e/../x HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        8 => b"GET / HTTP/1.1\r\nno colon\r\n\r\n".to_vec(),
        9 => [b"GET / HTTP/1.1\r\nx: ", &random_bytes(rng, 200)[..], b"\r\n\r\n"].concat(),
        10 => b"CONNECT stoker:1 HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        _ => b"GET /health HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAAA\r\n\r\n".to_vec(),
    }
}

//! Header blocks that are invalid, endless, too large, or expand to far more than they are.

use rand::{RngExt, rngs::StdRng};

use super::{GENERATE, PATIENCE, random_bytes};
use crate::{
    attack::{Attack, Context, Ending, Scope},
    http2::{MAX_FRAME, call_headers, flag, frame, kind, literal, opening, string},
    wire::Wire,
};

const FAMILY: &str = "malformed frames";

/// The attacks of this file.
pub const ATTACKS: &[Attack] = &[
    Attack {
        family: FAMILY,
        name: "invalid HPACK",
        scope: Scope::All,
        per_second: 6.0,
        concurrency: 32,
        attempt: |cx| Box::pin(send(cx, invalid)),
    },
    Attack {
        family: FAMILY,
        name: "invalid headers",
        scope: Scope::All,
        per_second: 6.0,
        concurrency: 32,
        attempt: |cx| Box::pin(send(cx, wrong_headers)),
    },
    Attack {
        family: FAMILY,
        name: "HPACK bomb",
        scope: Scope::All,
        per_second: 1.0,
        concurrency: 8,
        attempt: |cx| Box::pin(send(cx, bomb)),
    },
    Attack {
        family: FAMILY,
        name: "oversized headers",
        scope: Scope::All,
        per_second: 2.0,
        concurrency: 16,
        attempt: |cx| Box::pin(send(cx, oversized)),
    },
    Attack {
        family: "flood",
        name: "CONTINUATION flood",
        scope: Scope::All,
        per_second: 1.0,
        concurrency: 8,
        attempt: |cx| Box::pin(send(cx, continuations)),
    },
];

async fn send(mut cx: Context, frames: fn(&mut StdRng) -> Vec<u8>) -> Ending {
    let mut wire = match Wire::connect(&cx).await {
        Ok(wire) => wire,
        Err(ending) => return ending,
    };
    let bytes = [opening(&[]), frames(&mut cx.rng)].concat();
    wire.send(&bytes).await;
    wire.ending(PATIENCE).await
}

/// Returns a header block in as many frames as it takes.
fn headers(block: &[u8]) -> Vec<u8> {
    let mut chunks = block.chunks(MAX_FRAME).peekable();
    let mut bytes = Vec::new();
    let mut kind = kind::HEADERS;
    while let Some(chunk) = chunks.next() {
        let flags = if chunks.peek().is_none() { flag::END_HEADERS } else { 0 };
        bytes.extend(frame(kind, flags, 1, chunk));
        kind = kind::CONTINUATION;
    }
    bytes
}

fn invalid(rng: &mut StdRng) -> Vec<u8> {
    let block = match rng.random_range(0..10) {
        0 => random_bytes(rng, 300),
        // Index 0, and one outside the table.
        1 => vec![0x80],
        2 => vec![0xff, 0xff, 0x7f],
        // An integer without end.
        3 => vec![0xff; 200],
        4 => vec![0, 0x7f, b'a'],
        // A table of 4 GiB.
        5 => vec![0x3f, 0xe1, 0xff, 0xff, 0xff, 0x0f],
        // Huffman codes: the end of a string, and padding that is too long.
        6 => vec![0, 0x84, 0xff, 0xff, 0xff, 0xff, 0],
        7 => vec![0, 0x83, 0x1f, 0xff, 0xff, 0],
        // An update of the table after a header.
        8 => [call_headers(GENERATE), vec![0x20]].concat(),
        _ => {
            let mut block = call_headers(GENERATE);
            let at = rng.random_range(0..block.len());
            block[at] ^= 1 << rng.random_range(0..8);
            block
        }
    };
    headers(&block)
}

fn wrong_headers(rng: &mut StdRng) -> Vec<u8> {
    let good = call_headers(GENERATE);
    let with = |name: &str, value: &str| [good.clone(), literal(name, value)].concat();
    let block = match rng.random_range(0..12) {
        0 => with("Upper-Case", "x"),
        1 => with(":path", "/again"),
        2 => with("connection", "keep-alive"),
        3 => with("transfer-encoding", "chunked"),
        4 => with("te", "gzip"),
        5 => with("content-length", "-1"),
        6 => with("content-length", "99999999999999999999999"),
        7 => with("", "empty name"),
        8 => with("x\r\ny", "a\r\nb: c"),
        9 => with(":unknown", "x"),
        10 => literal(":path", GENERATE),
        _ => [literal("x", "y"), good].concat(),
    };
    // The stream ends here, since most of these are no call that a body could follow.
    let mut bytes = headers(&block);
    bytes[4] |= flag::END_STREAM;
    bytes
}

/// A header of 4,000 bytes is added to the table and referred to 16,000 times: 64 MB in 16 KB.
fn bomb(_: &mut StdRng) -> Vec<u8> {
    let mut block = vec![0x40];
    block.extend(string(b"x"));
    block.extend(string(&[b'a'; 4_000]));
    // 62 is the first index of the dynamic table.
    block.extend([0x80 | 62; 12_000]);
    headers(&[call_headers(GENERATE), block].concat())
}

fn oversized(rng: &mut StdRng) -> Vec<u8> {
    let long = "a".repeat(rng.random_range(10_000..100_000));
    let many: Vec<u8> = (0..2_000).flat_map(|i| literal(&format!("x-{i}"), "y")).collect();
    let extra = if rng.random() { literal("x", &long) } else { many };
    headers(&[call_headers(GENERATE), extra].concat())
}

fn continuations(rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = frame(kind::HEADERS, 0, 1, &call_headers(GENERATE));
    // Empty ones, or such that add a header each.
    let more = if rng.random() { Vec::new() } else { literal("x", "y") };
    bytes.extend(frame(kind::CONTINUATION, 0, 1, &more).repeat(10_000));
    bytes
}

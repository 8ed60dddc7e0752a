//! Bytes that are no HTTP/2, and frames that violate it.

use rand::{RngExt, rngs::StdRng};

use super::{GENERATE, PATIENCE, one_of, random_bytes};
use crate::{
    attack::{Attack, Context, Ending, Scope},
    http2::{MAX_FRAME, PREFACE, call_headers, flag, frame, kind, opening, raw_frame, settings},
    wire::Wire,
};

const FAMILY: &str = "malformed frames";

/// The attacks of this file.
pub const ATTACKS: &[Attack] = &[
    Attack {
        family: FAMILY,
        name: "random bytes",
        scope: Scope::All,
        per_second: 4.0,
        concurrency: 24,
        attempt: |cx| Box::pin(noise(cx)),
    },
    Attack {
        family: FAMILY,
        name: "wrong preface",
        scope: Scope::All,
        per_second: 2.0,
        concurrency: 24,
        attempt: |cx| Box::pin(preface(cx)),
    },
    Attack {
        family: FAMILY,
        name: "invalid settings",
        scope: Scope::All,
        per_second: 3.0,
        concurrency: 24,
        attempt: |cx| Box::pin(after_opening(cx, invalid_settings)),
    },
    Attack {
        family: FAMILY,
        name: "wrong lengths, streams and flags",
        scope: Scope::All,
        per_second: 6.0,
        concurrency: 48,
        attempt: |cx| Box::pin(after_opening(cx, violation)),
    },
    Attack {
        family: FAMILY,
        name: "wrong windows",
        scope: Scope::All,
        per_second: 3.0,
        concurrency: 24,
        attempt: |cx| Box::pin(after_opening(cx, windows)),
    },
    Attack {
        family: FAMILY,
        name: "frames after GOAWAY",
        scope: Scope::All,
        per_second: 2.0,
        concurrency: 24,
        attempt: |cx| Box::pin(after_opening(cx, after_goaway)),
    },
    Attack {
        family: FAMILY,
        name: "random frames",
        scope: Scope::All,
        per_second: 6.0,
        concurrency: 48,
        attempt: |cx| Box::pin(after_opening(cx, random_frames)),
    },
];

async fn noise(mut cx: Context) -> Ending {
    let mut wire = match Wire::connect(&cx).await {
        Ok(wire) => wire,
        Err(ending) => return ending,
    };
    let mut bytes = random_bytes(&mut cx.rng, 8 << 10);
    if cx.rng.random() {
        bytes.splice(0..0, opening(&[]));
    }
    wire.send(&bytes).await;
    // Otherwise the server waits for the rest of what may be a frame.
    wire.finish().await;
    wire.ending(PATIENCE).await
}

async fn preface(mut cx: Context) -> Ending {
    let mut wire = match Wire::connect(&cx).await {
        Ok(wire) => wire,
        Err(ending) => return ending,
    };
    let mut bytes = PREFACE.to_vec();
    match cx.rng.random_range(0..4) {
        0 => bytes[cx.rng.random_range(0..PREFACE.len())] ^= 1 << cx.rng.random_range(0..8),
        1 => bytes = b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n".to_vec(),
        // A frame that is not SETTINGS comes first.
        2 => bytes.extend(frame(kind::PING, 0, 0, &[0; 8])),
        _ => bytes.extend(PREFACE),
    }
    wire.send(&bytes).await;
    wire.ending(PATIENCE).await
}

async fn after_opening(mut cx: Context, bytes: fn(&mut StdRng) -> Vec<u8>) -> Ending {
    let mut wire = match Wire::connect(&cx).await {
        Ok(wire) => wire,
        Err(ending) => return ending,
    };
    let bytes = [opening(&[]), bytes(&mut cx.rng)].concat();
    wire.send(&bytes).await;
    wire.ending(PATIENCE).await
}

fn invalid_settings(rng: &mut StdRng) -> Vec<u8> {
    match rng.random_range(0..9) {
        0 => frame(kind::SETTINGS, 0, 0, &[0; 5]),
        1 => frame(kind::SETTINGS, flag::ACK, 0, &[0; 6]),
        2 => frame(kind::SETTINGS, 0, 1, &[0; 6]),
        // ENABLE_PUSH, INITIAL_WINDOW_SIZE and MAX_FRAME_SIZE out of their ranges.
        3 => settings(&[(2, 2)]),
        4 => settings(&[(4, 1 << 31)]),
        5 => settings(&[(5, one_of(rng, &[0, 1 << 24, u32::MAX]))]),
        // An acknowledgement of settings that the server did not send.
        6 => frame(kind::SETTINGS, flag::ACK, 0, &[]).repeat(20),
        7 => settings(&vec![(rng.random(), rng.random()); 2_000]),
        // Allowed, and extreme: no table, one header, one byte.
        _ => settings(&[(1, u32::MAX), (3, 0), (4, 0), (6, 1)]),
    }
}

fn violation(rng: &mut StdRng) -> Vec<u8> {
    let headers = call_headers(GENERATE);
    let open = |flags, stream| frame(kind::HEADERS, flags, stream, &headers);
    let opened = open(flag::END_HEADERS, 1);
    match rng.random_range(0..22) {
        0 => frame(kind::DATA, 0, 1, &vec![0; MAX_FRAME + 1]),
        1 => raw_frame(kind::DATA, 0, 1, (1 << 24) - 1, &[]),
        2 => open(flag::END_HEADERS, 2),
        3 => open(flag::END_HEADERS, 0),
        4 => frame(kind::DATA, 0, 0, b"x"),
        5 => frame(kind::DATA, 0, 7, b"x"),
        6 => frame(kind::CONTINUATION, flag::END_HEADERS, 1, &headers),
        7 => [open(0, 1), frame(kind::DATA, 0, 1, b"x")].concat(),
        8 => [open(0, 1), frame(kind::CONTINUATION, flag::END_HEADERS, 3, &headers)].concat(),
        9 => frame(kind::PING, 0, 0, &[0; 7]),
        10 => frame(kind::PING, 0, 3, &[0; 8]),
        11 => frame(kind::RESET, 0, 9, &[0, 0, 0, 8]),
        12 => [opened, frame(kind::RESET, 0, 1, &[0; 3])].concat(),
        13 => [open(flag::END_HEADERS, 5), open(flag::END_HEADERS, 3)].concat(),
        14 => [opened, raw_frame(kind::DATA, flag::PADDED, 1, 1, &[9])].concat(),
        15 => frame(kind::PRIORITY, 0, 1, &[0, 0, 0, 1, 0]),
        16 => frame(kind::PRIORITY, 0, 1, &[0; 4]),
        17 => frame(kind::PUSH_PROMISE, flag::END_HEADERS, 1, &[0, 0, 0, 2]),
        18 => frame(kind::GO_AWAY, 0, 0, &[0; 7]),
        19 => {
            [open(flag::END_HEADERS | flag::END_STREAM, 1), frame(kind::DATA, 0, 1, b"x")].concat()
        }
        20 => [opened.clone(), opened].concat(),
        _ => open(flag::END_HEADERS, u32::MAX),
    }
}

fn windows(rng: &mut StdRng) -> Vec<u8> {
    let open = frame(kind::HEADERS, flag::END_HEADERS, 1, &call_headers(GENERATE));
    let update = |stream, by: u32| frame(kind::WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    match rng.random_range(0..7) {
        0 => update(0, 0),
        1 => [open, update(1, 0)].concat(),
        2 => update(0, 0x7fff_ffff),
        3 => [open, update(1, 0x7fff_ffff)].concat(),
        4 => frame(kind::WINDOW_UPDATE, 0, 0, &[0; 3]),
        5 => update(9, 1),
        // More data than the window of the connection permits.
        _ => [open, frame(kind::DATA, 0, 1, &vec![0; MAX_FRAME]).repeat(80)].concat(),
    }
}

fn after_goaway(rng: &mut StdRng) -> Vec<u8> {
    let code = rng.random_range(0..14_u8);
    let mut bytes = frame(kind::GO_AWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, code]);
    for stream in [1, 3, 5] {
        bytes.extend(frame(kind::HEADERS, flag::END_HEADERS, stream, &call_headers(GENERATE)));
        bytes.extend(frame(kind::DATA, flag::END_STREAM, stream, &[0; 5]));
    }
    bytes
}

fn random_frames(rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..rng.random_range(1..20) {
        let kind = rng.random_range(0..12);
        let stream = one_of(rng, &[0, 1, 1, 3, 5, 2, 0x8000_0001]);
        let payload = match kind {
            kind::HEADERS if rng.random() => call_headers(GENERATE),
            _ => random_bytes(rng, 40),
        };
        let flags = rng.random();
        // One in eight has a wrong length.
        let longer = if rng.random_range(0..8) == 0 { rng.random_range(0..30) } else { 0 };
        bytes.extend(raw_frame(kind, flags, stream, payload.len() + longer, &payload));
    }
    // A last one, so that a frame with a wrong length is complete.
    bytes.extend(frame(kind::PING, 0, 0, &[0; 8]).repeat(4));
    bytes
}

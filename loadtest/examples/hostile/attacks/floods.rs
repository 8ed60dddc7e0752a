//! Much of what each by itself is allowed.

use std::time::Duration;

use prost::Message;
use rand::RngExt;
use stoker_proto::v1::{GenerateRequest, Stopping, generate_request::Input};

use super::{GENERATE, PATIENCE, json};
use crate::{
    attack::{Attack, Context, Ending, Role, Scope},
    calls::{call, grpc},
    http2::{call_headers, flag, frame, kind, message, opening, settings},
    wire::Wire,
};

const FAMILY: &str = "flood";
/// Streams of a connection that are opened and abandoned. Servers permit 128 and more.
const ABANDONED: u32 = 16;
/// Tokens that each of them requests.
const TOKENS: u32 = 64;

/// The attacks of this file.
pub const ATTACKS: &[Attack] = &[
    Attack {
        family: FAMILY,
        name: "rapid reset",
        scope: Scope::All,
        per_second: 0.5,
        concurrency: 2,
        attempt: |cx| Box::pin(rapid_reset(cx)),
    },
    Attack {
        family: FAMILY,
        name: "SETTINGS flood",
        scope: Scope::All,
        per_second: 1.0,
        concurrency: 2,
        attempt: |cx| Box::pin(repeated(cx, settings(&[(3, 100)]))),
    },
    Attack {
        family: FAMILY,
        name: "PING flood",
        scope: Scope::All,
        per_second: 1.0,
        concurrency: 2,
        attempt: |cx| Box::pin(repeated(cx, frame(kind::PING, 0, 0, &[7; 8]))),
    },
    Attack {
        family: FAMILY,
        name: "PRIORITY flood",
        scope: Scope::All,
        per_second: 1.0,
        concurrency: 2,
        attempt: |cx| Box::pin(repeated(cx, frame(kind::PRIORITY, 0, 3, &[0, 0, 0, 1, 9]))),
    },
    Attack {
        family: FAMILY,
        name: "empty DATA flood",
        scope: Scope::All,
        per_second: 1.0,
        concurrency: 2,
        attempt: |cx| Box::pin(empty_data(cx)),
    },
    Attack {
        family: FAMILY,
        name: "connection churn",
        scope: Scope::All,
        per_second: 50.0,
        concurrency: 32,
        attempt: |cx| Box::pin(churn(cx)),
    },
    Attack {
        family: FAMILY,
        name: "abandoned streams",
        scope: Scope::Grpc,
        per_second: 1.0,
        concurrency: 2,
        attempt: |cx| Box::pin(abandoned(cx)),
    },
    Attack {
        family: FAMILY,
        name: "wrong API keys",
        scope: Scope::All,
        per_second: 10.0,
        concurrency: 16,
        attempt: |cx| Box::pin(wrong_key(cx)),
    },
];

/// A call for few tokens, or one that computes nothing where `tokens` is 0.
fn request(tokens: u32) -> Vec<u8> {
    let request = GenerateRequest {
        input: Some(Input::Prompt("Once upon a time".into())),
        stopping: Some(Stopping {
            max_tokens: Some(tokens),
            ignore_eos: true,
            ..Stopping::default()
        }),
        ..GenerateRequest::default()
    };
    let bytes = request.encode_to_vec();
    message(0, bytes.len(), &bytes)
}

/// Opens 5,000 streams, and resets each at once.
async fn rapid_reset(cx: Context) -> Ending {
    let mut wire = match Wire::connect(&cx).await {
        Ok(wire) => wire,
        Err(ending) => return ending,
    };
    let (headers, body) = (call_headers(GENERATE), request(TOKENS));
    wire.send(&opening(&[])).await;
    for batch in 0..50 {
        let mut bytes = Vec::new();
        for stream in (0..100).map(|i| 2 * (100 * batch + i) + 1) {
            bytes.extend(frame(kind::HEADERS, flag::END_HEADERS, stream, &headers));
            bytes.extend(frame(kind::DATA, flag::END_STREAM, stream, &body));
            bytes.extend(frame(kind::RESET, 0, stream, &[0, 0, 0, 8]));
        }
        if !wire.send(&bytes).await {
            break;
        }
    }
    wire.ending(Duration::from_secs(1)).await
}

/// Sends a frame 20,000 times, and reads nothing meanwhile.
async fn repeated(cx: Context, frame: Vec<u8>) -> Ending {
    let mut wire = match Wire::connect(&cx).await {
        Ok(wire) => wire,
        Err(ending) => return ending,
    };
    wire.send(&opening(&[])).await;
    let frames = frame.repeat(1_000);
    for _ in 0..20 {
        if !wire.send(&frames).await {
            break;
        }
    }
    wire.ending(Duration::from_secs(1)).await
}

/// Sends DATA without a byte of data, which no window limits.
async fn empty_data(cx: Context) -> Ending {
    let mut wire = match Wire::connect(&cx).await {
        Ok(wire) => wire,
        Err(ending) => return ending,
    };
    let open = frame(kind::HEADERS, flag::END_HEADERS, 1, &call_headers(GENERATE));
    wire.send(&[opening(&[]), open].concat()).await;
    let frames = frame(kind::DATA, 0, 1, &[]).repeat(1_000);
    for _ in 0..20 {
        if !wire.send(&frames).await {
            break;
        }
    }
    wire.ending(Duration::from_secs(1)).await
}

/// Connects, sends something or nothing, and closes.
async fn churn(mut cx: Context) -> Ending {
    let mut wire = match Wire::connect(&cx).await {
        Ok(wire) => wire,
        Err(ending) => return ending,
    };
    if cx.rng.random() {
        wire.send(&opening(&[])).await;
    }
    Ending::Finished
}

/// Opens streams that generate tokens, reads none of them, and closes the connection in their middle.
async fn abandoned(mut cx: Context) -> Ending {
    let mut wire = match Wire::connect(&cx).await {
        Ok(wire) => wire,
        Err(ending) => return ending,
    };
    let (headers, body) = (call_headers(GENERATE), request(TOKENS));
    let mut bytes = opening(&[]);
    for stream in (0..ABANDONED).map(|i| 2 * i + 1) {
        bytes.extend(frame(kind::HEADERS, flag::END_HEADERS, stream, &headers));
        bytes.extend(frame(kind::DATA, flag::END_STREAM, stream, &body));
    }
    wire.send(&bytes).await;
    wire.hold(Duration::from_millis(cx.rng.random_range(0..500))).await;
    Ending::Finished
}

/// A request with a key that does not exist.
async fn wrong_key(mut cx: Context) -> Ending {
    let length = cx.rng.random_range(0..100);
    let key: String = (0..length).map(|_| cx.rng.random_range('!'..='~')).collect();
    let authorization = match cx.rng.random_range(0..3) {
        0 => format!("Bearer sk-stoker-{key}"),
        1 => format!("Basic {key}"),
        _ => format!("Bearer {}", "x".repeat(8_000)),
    };
    if cx.role != Role::Http {
        let request = grpc(&cx, GENERATE).header("authorization", authorization);
        return call(&cx, request, self::request(1)).await;
    }
    let mut wire = match Wire::connect(&cx).await {
        Ok(wire) => wire,
        Err(ending) => return ending,
    };
    let body = br#"{"model": "no-such-model", "prompt": "Once", "max_tokens": 1}"#;
    let request = json::post("/v1/completions", body);
    let line = "POST /v1/completions HTTP/1.1\r\n".len();
    let header = format!("authorization: {authorization}\r\n");
    wire.send(&[&request[..line], header.as_bytes(), &request[line..]].concat()).await;
    wire.ending(PATIENCE).await
}

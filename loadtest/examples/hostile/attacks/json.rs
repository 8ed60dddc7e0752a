//! JSON of wrong types, nested too deeply, with huge numbers, or that is none, to every path of OpenAI's
//! API.

use rand::{RngExt, rngs::StdRng};
use serde_json::{Value, json};

use super::{PATIENCE, one_of, random_bytes};
use crate::{
    attack::{Attack, Context, Ending, Scope},
    wire::Wire,
};

const FAMILY: &str = "wrong types";

/// The attacks of this file.
pub const ATTACKS: &[Attack] = &[
    Attack {
        family: FAMILY,
        name: "JSON of wrong types",
        scope: Scope::Http,
        per_second: 16.0,
        concurrency: 32,
        attempt: |cx| Box::pin(send(cx, wrong_types)),
    },
    Attack {
        family: FAMILY,
        name: "deep JSON and huge numbers",
        scope: Scope::Http,
        per_second: 4.0,
        concurrency: 16,
        attempt: |cx| Box::pin(send(cx, extreme)),
    },
    Attack {
        family: FAMILY,
        name: "invalid JSON and UTF-8",
        scope: Scope::Http,
        per_second: 8.0,
        concurrency: 32,
        attempt: |cx| Box::pin(send(cx, invalid)),
    },
];

const PATHS: &[&str] = &["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"];

/// Returns a request with its body, over HTTP/1.1.
pub fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: stoker\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

async fn send(mut cx: Context, body: fn(&mut StdRng) -> Vec<u8>) -> Ending {
    let path = one_of(&mut cx.rng, PATHS);
    let bytes = post(path, &body(&mut cx.rng));
    let mut wire = match Wire::connect(&cx).await {
        Ok(wire) => wire,
        Err(ending) => return ending,
    };
    wire.send(&bytes).await;
    wire.ending(PATIENCE).await
}

/// A valid request for any path, for few tokens.
fn request() -> Value {
    json!({
        "model": "simulated", "prompt": "Once", "text": "Once", "tokens": [1, 2], "ids": [1, 2],
        "messages": [{"role": "user", "content": "Once"}], "max_tokens": 4, "n": 1, "temperature": 1.0,
        "top_p": 1.0, "stop": ["x"], "stream": false, "logprobs": 1, "seed": 1, "logit_bias": {"1": 1.0},
        "response_format": {"type": "json_object"}, "stream_options": {"include_usage": true},
        "user": "x", "tools": [], "priority": 1,
    })
}

fn wrong_types(rng: &mut StdRng) -> Vec<u8> {
    let wrong = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(1.5),
        json!(1e308),
        json!(u64::MAX),
        json!("x"),
        json!(""),
        json!([]),
        json!([[]]),
        json!({}),
        json!({"type": []}),
        json!([null]),
        json!("\u{0}\u{ffff}"),
        json!([{"role": 1}]),
        json!(vec!["x"; 100]),
        json!({"x": {"y": {"z": 1}}}),
    ];
    let mut body = request();
    if let Some(fields) = body.as_object_mut() {
        let names: Vec<String> = fields.keys().cloned().collect();
        for _ in 0..rng.random_range(1..4) {
            let name = &names[rng.random_range(0..names.len())];
            fields.insert(name.clone(), wrong[rng.random_range(0..wrong.len())].clone());
        }
        // One of the fields is wrong, so the others decide less often if there are few.
        fields.retain(|_, _| rng.random_bool(0.7));
        fields.entry("max_tokens").or_insert(json!(4));
    }
    body.to_string().into_bytes()
}

fn extreme(rng: &mut StdRng) -> Vec<u8> {
    let field =
        one_of(rng, &["prompt", "messages", "text", "temperature", "max_tokens", "metadata"]);
    let value = match rng.random_range(0..8) {
        0 => "[".repeat(100_000),
        1 => "{\"a\":".repeat(100_000),
        2 => [&"[".repeat(100_000)[..], &"]".repeat(100_000)].concat(),
        3 => "9".repeat(100_000),
        4 => "1e999999999".into(),
        5 => format!("0.{}1", "0".repeat(100_000)),
        6 => format!("[{}1]", "1,".repeat(200_000)),
        _ => format!("\"{}\"", "\\u0000".repeat(100_000)),
    };
    format!("{{\"max_tokens\": 4, \"{field}\": {value}}}").into_bytes()
}

fn invalid(rng: &mut StdRng) -> Vec<u8> {
    match rng.random_range(0..9) {
        0 => random_bytes(rng, 2_000),
        1 => b"{\"prompt\": \"\xff\xfe\xed\xa0\x80\"}".to_vec(),
        // Half of a surrogate pair.
        2 => br#"{"prompt": "\ud800", "max_tokens": 1}"#.to_vec(),
        3 => br#"{"max_tokens": 1, "max_tokens": 2, "prompt": "a", "prompt": 3}"#.to_vec(),
        4 => b"{\"prompt\": \"a\", }".to_vec(),
        5 => b"\xef\xbb\xbf{}".to_vec(),
        6 => b"NaN".to_vec(),
        7 => b"{} {}".to_vec(),
        _ => {
            let mut bytes = request().to_string().into_bytes();
            bytes.truncate(rng.random_range(0..bytes.len()));
            bytes
        }
    }
}

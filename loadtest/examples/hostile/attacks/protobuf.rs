//! Messages of every method that are random, mutated, or nested too deeply.

use prost::Message;
use rand::{RngExt, rngs::StdRng};
use stoker_proto::v1::{
    Chat, ChatMessage, GenerateRequest, Guided, Sampling, Stopping, TokenIds,
    generate_request::Input, guided::Form,
};

use super::{one_of, random_bytes};
use crate::{
    attack::{Attack, Context, Ending, Scope},
    calls::{call, grpc},
    http2::message,
};

const FAMILY: &str = "wrong types";

/// The attacks of this file.
pub const ATTACKS: &[Attack] = &[
    Attack {
        family: FAMILY,
        name: "mutated requests",
        scope: Scope::Grpc,
        per_second: 12.0,
        concurrency: 24,
        attempt: |cx| Box::pin(mutated(cx)),
    },
    Attack {
        family: FAMILY,
        name: "random messages",
        scope: Scope::Grpc,
        per_second: 12.0,
        concurrency: 24,
        attempt: |cx| Box::pin(random(cx)),
    },
];

const METHODS: &[&str] = &[
    "/stoker.v1.Inference/Generate",
    "/stoker.v1.Control/GetModelInfo",
    "/stoker.v1.Control/ListModels",
    "/stoker.v1.Control/Tokenize",
    "/stoker.v1.Control/Detokenize",
    "/stoker.v1.Admin/Drain",
    "/stoker.v1.Admin/ListWorkers",
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
];

/// A valid request with fields of all kinds, for few tokens: what a mutation leaves valid is served.
fn request(rng: &mut StdRng) -> GenerateRequest {
    let chat = || {
        let message =
            ChatMessage { role: "user".into(), content: "Once".into(), ..Default::default() };
        Chat {
            messages: vec![message; 3],
            template_kwargs_json: "{\"a\": [1]}".into(),
            ..Default::default()
        }
    };
    let input = match rng.random_range(0..3) {
        0 => Input::Prompt("Once upon a time".into()),
        1 => Input::TokenIds(TokenIds { ids: vec![1, 2, 3, rng.random()] }),
        _ => Input::Chat(chat()),
    };
    let form = match rng.random_range(0..5) {
        0 => Form::JsonSchema(
            r#"{"type": "object", "properties": {"a": {"type": "integer"}}}"#.into(),
        ),
        1 => Form::Regex("(a+)+b".into()),
        2 => Form::EbnfGrammar("root ::= root root | \"a\"".into()),
        _ => Form::JsonObject(true),
    };
    GenerateRequest {
        input: Some(input),
        sampling: Some(Sampling {
            temperature: Some(one_of(rng, &[1.0, 0.0, f32::NAN, f32::INFINITY, -1.0, 1e-40])),
            top_p: Some(one_of(rng, &[0.9, 0.0, f32::NAN, 2.0])),
            top_k: Some(one_of(rng, &[0, 5, u32::MAX])),
            num_sequences: Some(one_of(rng, &[1, 2, 0, u32::MAX])),
            logit_bias: (0..rng.random_range(0..20)).map(|_| (rng.random(), f32::NAN)).collect(),
            ..Sampling::default()
        }),
        stopping: Some(Stopping {
            max_tokens: Some(one_of(rng, &[0, 1, 4, 8])),
            ..Stopping::default()
        }),
        guided: rng.random_bool(0.2).then_some(Guided { form: Some(form) }),
        ..GenerateRequest::default()
    }
}

async fn mutated(mut cx: Context) -> Ending {
    let rng = &mut cx.rng;
    let mut bytes = request(rng).encode_to_vec();
    for _ in 0..rng.random_range(0..4) {
        let at = rng.random_range(0..bytes.len());
        match rng.random_range(0..5) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = one_of(rng, &[0, 0x7f, 0x80, 0xff]),
            2 => drop(bytes.splice(at..at, random_bytes(rng, 8))),
            3 => bytes.truncate(at.max(1)),
            _ => bytes.extend_from_within(..at),
        }
    }
    let method = if rng.random() { METHODS[0] } else { one_of(rng, METHODS) };
    call(&cx, grpc(&cx, method), message(0, bytes.len(), &bytes)).await
}

async fn random(mut cx: Context) -> Ending {
    let rng = &mut cx.rng;
    let bytes = match rng.random_range(0..6) {
        0 => random_bytes(rng, 2_000),
        // Groups without end, one in the other.
        1 => vec![0x0b; 100_000],
        // A chat in a chat in a chat: field 5, each as long as the rest.
        2 => nested(5, 200),
        // A number of more than ten bytes, and a string of 4 GiB.
        3 => vec![0xff; 50],
        4 => vec![0x1a, 0xff, 0xff, 0xff, 0xff, 0x0f, b'a'],
        // Text that is not UTF-8.
        _ => vec![0x1a, 4, 0xff, 0xfe, 0xed, 0xa0],
    };
    let method = one_of(rng, METHODS);
    call(&cx, grpc(&cx, method), message(0, bytes.len(), &bytes)).await
}

/// Returns a message whose `field` is a message whose field is a message, `depth` times.
fn nested(field: u8, depth: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..depth {
        let mut outer = vec![field << 3 | 2];
        prost::encoding::encode_varint(bytes.len() as u64, &mut outer);
        outer.extend(&bytes);
        bytes = outer;
    }
    bytes
}

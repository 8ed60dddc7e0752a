//! Decodes messages that earlier releases encoded: routers and workers of adjacent releases
//! interoperate.
//!
//! `recorded/RELEASE-MESSAGE.hex` is never changed, and each release adds its own files. The tests
//! contain the expected value of every message; the same message with additional fields of a later
//! release must decode to the same value.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{fmt::Debug, fs};

use prost::Message;
use stoker_proto::v1::{
    Accepted, Capacity, Finished, GenerateRequest, GenerateResponse, Load, ModelInfo, Resume,
    ResumedChoice, Routing, Sampling, Stopping, TokenDelta, generate_request::Input,
    generate_response::Event,
};

/// Fields that no release has yet: a number, a string, and a message with both.
const UNKNOWN_FIELDS: &[u8] = b"\xf8\x07\x2a\x82\x08\x03new\xa2\x3f\x08\xf8\x07\x2a\x82\x08\x02ab";

fn recorded(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/recorded/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text: String = fs::read_to_string(path).unwrap().split_whitespace().collect();
    let digits: Vec<char> = text.chars().collect();
    digits.chunks(2).map(|d| u8::from_str_radix(&String::from_iter(d), 16).unwrap()).collect()
}

/// Asserts that the recording `name` decodes to `expected`, also with unknown fields before or
/// after it.
fn assert_decodes<M: Message + Default + PartialEq + Debug>(name: &str, expected: &M) {
    let bytes = recorded(name);
    assert_eq!(M::decode(&*bytes).unwrap(), *expected, "{name}");
    for extended in [[&bytes[..], UNKNOWN_FIELDS].concat(), [UNKNOWN_FIELDS, &bytes].concat()] {
        assert_eq!(M::decode(&*extended).unwrap(), *expected, "{name} with unknown fields");
    }
}

fn routed(resume: Resume) -> GenerateRequest {
    GenerateRequest {
        request_id: "r-1".into(),
        model: "story".into(),
        input: Some(Input::Prompt("Once upon".into())),
        sampling: Some(Sampling {
            temperature: Some(0.5),
            seed: Some(42),
            num_sequences: Some(2),
            ..Sampling::default()
        }),
        stopping: Some(Stopping { max_tokens: Some(100), ..Stopping::default() }),
        routing: Some(Routing {
            attempt: 2,
            tenant: "acme".into(),
            resume: Some(resume),
            ..Routing::default()
        }),
        ..GenerateRequest::default()
    }
}

fn resume() -> Resume {
    let choice = |ids: &[u32], text_bytes_sent, finished| ResumedChoice {
        token_ids: ids.to_vec(),
        text_bytes_sent,
        finished,
    };
    let ended = Finished { reason: 1, ..Finished::default() };
    let choices = vec![choice(&[5, 6], 7, None), choice(&[9], 3, Some(ended))];
    Resume { choices, digest: "d1".into(), ..Resume::default() }
}

#[test]
fn requests_of_an_earlier_router_decode() {
    assert_decodes("0.1.0-generate_request", &routed(resume()));
}

#[test]
fn unknown_fields_within_routing_and_resume_are_ignored() {
    let nested = |number: u8, message: &[u8]| {
        let length = u8::try_from(message.len()).unwrap();
        assert!(number < 16 && length < 128, "fits into one byte each");
        [&[number << 3 | 2, length], message].concat()
    };
    let resume = [resume().encode_to_vec(), UNKNOWN_FIELDS.to_vec()].concat();
    let routing = [&nested(3, &resume), UNKNOWN_FIELDS].concat();
    let request = [nested(15, &routing), UNKNOWN_FIELDS.to_vec()].concat();
    let decoded = GenerateRequest::decode(&*request).unwrap().routing.unwrap();
    assert_eq!(decoded.resume, Some(self::resume()));
}

#[test]
fn messages_of_an_earlier_worker_decode() {
    let event = |choice, event| GenerateResponse { choice, event: Some(event), attempt: 2 };
    let accepted = Accepted {
        request_id: "r-1".into(),
        model: "story".into(),
        worker: "10.0.0.7:50052".into(),
        seed: 42,
        prompt_tokens: 4,
        ..Accepted::default()
    };
    assert_eq!(accepted.max_tokens, 0, "0 means unknown");
    assert_decodes("0.1.0-accepted", &event(0, Event::Accepted(accepted)));
    let delta = TokenDelta { ids: vec![7, 8], text: "a b".into(), ..TokenDelta::default() };
    assert_decodes("0.1.0-token", &event(1, Event::Token(delta)));
    let info = ModelInfo {
        model: "story".into(),
        digest: "d1".into(),
        architecture: "LlamaForCausalLM".into(),
        parameters: 1_304_192,
        context_length: 1_024,
        vocab_size: 1_536,
        quantization: "int8".into(),
        device_class: "cpu".into(),
        eos_token_ids: vec![1],
        bos_token_id: Some(0),
        version: "0.1.0".into(),
        worker: "10.0.0.7:50052".into(),
        capacity: Some(Capacity {
            max_num_seqs: 64,
            max_num_batched_tokens: 512,
            kv_blocks: 128,
            kv_block_size: 16,
            max_num_queued_reqs: 1_024,
            ..Capacity::default()
        }),
        ..ModelInfo::default()
    };
    assert_eq!(info.instance_id, "", "the address identifies the worker instead");
    assert_decodes("0.1.0-model_info", &info);
    let load = Load {
        running: 3,
        waiting: 1,
        queued_tokens: 17,
        free_kv_blocks: 100,
        total_kv_blocks: 128,
        step: 77,
        progress: 900,
        ..Load::default()
    };
    assert_decodes("0.1.0-load", &load);
}

#[test]
fn an_unknown_event_decodes_to_no_event() {
    // Field 7, which no event uses.
    let event = GenerateResponse::decode(&b"\x3a\x03\x0a\x01x\x40\x02"[..]).unwrap();
    assert_eq!((event.event, event.attempt), (None, 2));
}

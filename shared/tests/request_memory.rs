//! The bytes that a request is charged are close to what it allocates.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::HashMap;

use peak_alloc::PeakAlloc;
use prost::Message;
use stoker_proto::v1::{
    Chat, ChatMessage, GenerateRequest, Resume, ResumedChoice, Routing, Sampling, StopCondition,
    Stopping, TokenIds, generate_request::Input, stop_condition::Kind,
};
use stoker_shared::memory::allocated_bytes;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

fn requests() -> Vec<(&'static str, GenerateRequest)> {
    let of = |input| GenerateRequest { input: Some(input), ..GenerateRequest::default() };
    let message = |content: &str| ChatMessage { content: content.into(), ..ChatMessage::default() };
    let messages =
        |count, text: &str| Chat { messages: vec![message(text); count], ..Chat::default() };
    let stop = |text: &str| StopCondition { kind: Some(Kind::Text(text.into())) };
    let conditions = vec![stop("the end"); 1_000];
    let logit_bias: HashMap<_, _> = (0..1_000).map(|id| (id, 1.0)).collect();
    let choice = ResumedChoice { token_ids: vec![7; 5_000], ..ResumedChoice::default() };
    let resume = Some(Resume { choices: vec![choice; 16], ..Resume::default() });
    vec![
        ("a prompt", of(Input::Prompt("x".repeat(100_000)))),
        // Each id takes one byte on the wire.
        ("ids", of(Input::TokenIds(TokenIds { ids: vec![7; 300_000] }))),
        ("a chat", of(Input::Chat(messages(1_000, "Once upon a time")))),
        ("a chat of empty messages", of(Input::Chat(messages(10_000, "")))),
        (
            "stops",
            GenerateRequest {
                stopping: Some(Stopping { conditions, ..Stopping::default() }),
                ..GenerateRequest::default()
            },
        ),
        (
            "bias",
            GenerateRequest {
                sampling: Some(Sampling { logit_bias, ..Sampling::default() }),
                ..GenerateRequest::default()
            },
        ),
        (
            "a resume",
            GenerateRequest {
                routing: Some(Routing { resume, ..Routing::default() }),
                ..GenerateRequest::default()
            },
        ),
    ]
}

#[test]
fn charged_bytes_are_close_to_allocated_bytes() {
    for (what, request) in requests() {
        let bytes = request.encode_to_vec();
        drop(request);
        let before = ALLOCATOR.current_usage();
        let request = Box::new(GenerateRequest::decode(&bytes[..]).unwrap());
        let allocated = (ALLOCATOR.current_usage() - before) as f64;
        let counted = allocated_bytes(&request) as f64;
        eprintln!("{what}: {} on the wire, {allocated} held, {counted} counted", bytes.len());
        assert!(counted >= 0.95 * allocated, "{what}: {allocated} held, {counted} counted");
        assert!(counted <= 2.0 * allocated, "{what}: {allocated} held, {counted} counted");
    }
}

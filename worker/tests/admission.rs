//! Prompts against the context: refused before or after they are tokenised, and with which words.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use stoker_proto::v1::{GenerateRequest, generate_request::Input};
use stoker_worker::{ModelSource, WorkerConfig, admit::Admission, load};

/// The words of the refusal of a prompt where `room` tokens fit; none if it is admitted.
fn refusal(prompt: String, room: usize) -> Option<String> {
    let model = load(&ModelSource::Bundled, &WorkerConfig::default(), 1).unwrap();
    let admission = Admission { model: &model, name: "storyteller", room, max_num_seqs: 4 };
    let input = Some(Input::Prompt(prompt));
    let request = GenerateRequest { input, ..GenerateRequest::default() };
    admission.admit(request).err().map(|error| error.to_string())
}

#[test]
fn a_prompt_far_too_long_is_refused_by_its_length() {
    let message = refusal("once upon a time ".repeat(100_000), 512).unwrap();
    for part in ["prompt", "1700000 bytes are at least", "at most 511 tokens", "context of 512"] {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn a_prompt_somewhat_too_long_is_refused_by_its_tokens() {
    let message = refusal("a b c d e f ".repeat(60), 256).unwrap();
    assert!(message.contains(" tokens; at most 255 tokens leave room"), "{message}");
    assert!(!message.contains("bytes"), "{message}");
}

#[test]
fn a_prompt_that_fits_is_admitted() {
    assert_eq!(refusal("once upon a time ".repeat(10), 256), None);
}

//! Prompts against the context, and what is to be resumed against the model: refused with which words.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use stoker_engine::request::Resumed;
use stoker_proto::v1::{
    Finished, GenerateRequest, Resume, ResumedChoice, Routing, Sampling, generate_request::Input,
};
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

/// What is made of a request for two continuations that is to be resumed.
fn resumed(change: impl FnOnce(&mut Resume)) -> Result<Vec<Resumed>, String> {
    let model = load(&ModelSource::Bundled, &WorkerConfig::default(), 1).unwrap();
    let admission = Admission { model: &model, name: "storyteller", room: 64, max_num_seqs: 4 };
    let choice = |ids: &[u32], text_bytes_sent, finished| ResumedChoice {
        token_ids: ids.to_vec(),
        text_bytes_sent,
        finished,
    };
    let choices = vec![choice(&[5, 6], 7, None), choice(&[9], 3, Some(Finished::default()))];
    let mut resume = Resume { choices, digest: model.digest.clone() };
    change(&mut resume);
    let request = GenerateRequest {
        input: Some(Input::Prompt("once".into())),
        sampling: Some(Sampling { num_sequences: Some(2), ..Sampling::default() }),
        routing: Some(Routing { attempt: 2, resume: Some(resume), ..Routing::default() }),
        ..GenerateRequest::default()
    };
    let admitted = admission.admit(request);
    admitted.map(|request| request.resumed).map_err(|error| error.to_string())
}

#[test]
fn what_another_worker_made_is_taken_over() {
    let one = Resumed { tokens: vec![5, 6], text_bytes: 7, ended: false };
    let other = Resumed { tokens: vec![9], text_bytes: 3, ended: true };
    assert_eq!(resumed(|_| ()), Ok(vec![one, other]));
    let nothing = resumed(|r| r.choices = vec![ResumedChoice::default(); 2]);
    assert_eq!(nothing, Ok(vec![]), "which is as good as a beginning");
}

#[test]
fn what_this_worker_could_not_have_made_is_refused() {
    let refused = |change: fn(&mut Resume)| resumed(change).unwrap_err();
    for (message, parts) in [
        (refused(|r| r.digest = "beef".into()), ["routing.resume.digest", "\"beef\" is not"]),
        (refused(|r| drop(r.choices.pop())), ["routing.resume.choices", "1 entries for 2"]),
        (
            refused(|r| r.choices[1].token_ids.push(4_000_000)),
            ["routing.resume.choices[1].token_ids[1]", "4000000"],
        ),
        (
            refused(|r| r.choices[0].token_ids = vec![1; 2_000]),
            ["routing.resume.choices[0].token_ids", "2000 tokens are above"],
        ),
        (
            refused(|r| r.choices[0].finished = Some(Finished::default())),
            ["routing.resume", "every choice has ended"],
        ),
        // One with more memory could have, and can.
        (
            refused(|r| r.choices[0].token_ids = vec![1; 100]),
            ["KV blocks for 64 tokens (--kv-cache-memory)", "try again in 1000 ms"],
        ),
    ] {
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }
}

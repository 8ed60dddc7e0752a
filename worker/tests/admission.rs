//! Prompts and limits against the model and against the worker, and what is to be resumed: refused with which words.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::LazyLock;

use stoker_engine::{Model, Request, request::Resumed};
use stoker_proto::v1::{
    Finished, GenerateRequest, Resume, ResumedChoice, Routing, Sampling, Stopping, TokenIds,
    generate_request::Input,
};
use stoker_shared::ServiceError;
use stoker_worker::{ModelSource, WorkerConfig, admit::Admission, load};

/// The bundled model, whose context is 1,024 tokens.
static MODEL: LazyLock<Model> =
    LazyLock::new(|| load(&ModelSource::Bundled, &WorkerConfig::default(), 1).unwrap());

/// Admits a request where the KV cache holds `max_sequence_tokens` tokens and a batch four sequences.
fn admit(max_sequence_tokens: usize, request: GenerateRequest) -> Result<Request, ServiceError> {
    Admission { model: &MODEL, name: "storyteller", max_sequence_tokens, max_num_seqs: 4 }.admit(request)
}

/// A prompt of so many tokens, and the limits of its response.
fn sized(prompt: usize, max_tokens: Option<u32>, min_tokens: Option<u32>) -> GenerateRequest {
    GenerateRequest {
        input: Some(Input::TokenIds(TokenIds { ids: vec![7; prompt] })),
        stopping: Some(Stopping { max_tokens, min_tokens, ..Stopping::default() }),
        ..GenerateRequest::default()
    }
}

/// The words of the refusal of a prompt where `max_sequence_tokens` tokens fit; none if it is admitted.
fn refusal(prompt: String, max_sequence_tokens: usize) -> Option<String> {
    let input = Some(Input::Prompt(prompt));
    let request = GenerateRequest { input, ..GenerateRequest::default() };
    admit(max_sequence_tokens, request).err().map(|error| error.to_string())
}

#[test]
fn a_prompt_that_is_too_long_for_the_model_is_the_client_s_mistake() {
    for (prompt, parts) in [
        (
            "once upon a time ".repeat(100_000),
            ["1700000 bytes are at least", "at most 1023 tokens"],
        ),
        (
            "a b c d e f ".repeat(200),
            [" tokens; at most 1023 tokens leave max_sequence_tokens", "context of 1024"],
        ),
    ] {
        let request = GenerateRequest { input: Some(Input::Prompt(prompt)), ..Default::default() };
        let error = admit(512, request).unwrap_err();
        assert!(matches!(error, ServiceError::Invalid(_)), "{error:?}");
        let message = error.to_string();
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }
    assert_eq!(refusal("once upon a time ".repeat(10), 256), None);
}

/// What a worker says that it would need, and that the limit is its own.
fn needed(max_sequence_tokens: usize, request: GenerateRequest) -> u32 {
    match admit(max_sequence_tokens, request) {
        Err(ServiceError::ExceedsWorker { what, needed_tokens }) => {
            assert!(
                what.contains(&max_sequence_tokens.to_string()) && what.contains("--kv-cache-memory"),
                "{what}"
            );
            needed_tokens
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_too_long_for_the_worker_alone_may_go_to_another_one() {
    assert_eq!(needed(256, sized(300, None, None)), 301);
    assert_eq!(needed(256, sized(100, Some(200), None)), 300);
    assert_eq!(needed(256, sized(100, Some(5_000), None)), 1_024, "no more than the context");
    assert_eq!(needed(256, sized(100, None, Some(200))), 300);
    let text = Some(Input::Prompt("once upon a time ".repeat(100)));
    assert!(needed(64, GenerateRequest { input: text, ..Default::default() }) > 100);

    let sampling = Some(Sampling { num_sequences: Some(5), ..Default::default() });
    let error = admit(256, GenerateRequest { sampling, ..sized(10, None, None) }).unwrap_err();
    assert!(matches!(error, ServiceError::ExceedsWorker { .. }), "{error:?}");
    assert!(
        error.to_string().contains("5 is above 4") && error.to_string().contains("--max-num-seqs")
    );

    let error = admit(256, sized(100, None, Some(1_000))).unwrap_err();
    assert!(error.to_string().contains("stopping.min_tokens: 1000 is above 924"), "{error}");
}

#[test]
fn the_limit_is_decided_once() {
    let limit = |max_sequence_tokens, request| admit(max_sequence_tokens, request).unwrap().stopping.max_tokens.unwrap();
    assert_eq!(limit(1_024, sized(24, Some(100), None)), 100);
    assert_eq!(limit(1_024, sized(24, Some(5_000), None)), 1_000, "the model's context");
    assert_eq!(limit(1_024, sized(24, None, None)), 1_000);
    assert_eq!(limit(256, sized(56, None, None)), 200, "what the first worker has");
    let resumed = |max_tokens| {
        let choices = vec![ResumedChoice { token_ids: vec![5; 10], ..Default::default() }];
        let resume = Some(Resume { choices, digest: MODEL.digest.clone(), max_tokens });
        let routing = Some(Routing { resume, ..Default::default() });
        GenerateRequest { routing, ..sized(56, None, None) }
    };
    assert_eq!(limit(1_024, resumed(200)), 200, "as it was decided elsewhere");
    assert_eq!(limit(1_024, resumed(0)), 968, "by a router that does not know");
    assert_eq!(needed(256, resumed(300)), 356);
    let error = admit(1_024, resumed(2_000)).unwrap_err();
    assert!(matches!(error, ServiceError::Mismatch(_)), "no worker decided that: {error:?}");
}

#[test]
fn what_another_worker_accepted_and_had_no_token_of_may_start_anywhere() {
    let resume = Some(Resume { max_tokens: 50, ..Resume::default() });
    let routing = Some(Routing { resume, suspect: true, ..Routing::default() });
    let request = admit(256, GenerateRequest { routing, ..sized(10, None, None) }).unwrap();
    assert!(request.accepted_before && request.suspect && request.resumed.is_empty());
    assert_eq!(request.stopping.max_tokens, Some(50));
    let new = admit(256, sized(10, None, None)).unwrap();
    assert!(!new.accepted_before && !new.suspect);
}

/// What is made of a request for two choices that is to be resumed.
fn resumed(change: impl FnOnce(&mut Resume)) -> Result<Vec<Resumed>, ServiceError> {
    let choice = |ids: &[u32], text_bytes_sent, finished| ResumedChoice {
        token_ids: ids.to_vec(),
        text_bytes_sent,
        finished,
    };
    let choices = vec![choice(&[5, 6], 7, None), choice(&[9], 3, Some(Finished::default()))];
    let mut resume = Resume { choices, digest: MODEL.digest.clone(), max_tokens: 0 };
    change(&mut resume);
    let request = GenerateRequest {
        input: Some(Input::Prompt("once".into())),
        sampling: Some(Sampling { num_sequences: Some(2), ..Sampling::default() }),
        routing: Some(Routing { attempt: 2, resume: Some(resume), ..Routing::default() }),
        ..GenerateRequest::default()
    };
    admit(64, request).map(|request| request.resumed)
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
fn what_this_worker_could_not_have_made_is_refused_and_never_as_the_client_s_mistake() {
    let refused = |change: fn(&mut Resume)| resumed(change).unwrap_err();
    for (error, parts) in [
        (refused(|r| r.digest = "beef".into()), ["routing.resume.digest", "\"beef\" is not"]),
        (refused(|r| r.digest = String::new()), ["routing.resume.digest", "\"\" is not"]),
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
    ] {
        let message = error.to_string();
        assert!(matches!(error, ServiceError::Mismatch(_)), "{error:?}");
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }
    // One with more memory could have, and can.
    let error = refused(|r| r.choices[0].token_ids = vec![1; 100]);
    assert!(matches!(error, ServiceError::ExceedsWorker { .. }), "{error:?}");
}

//! Validation of prompts, limits and resume state against the model and the worker, with the errors
//! of rejected requests.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::LazyLock;

use stoker_chat_template::Renderer;
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

static TEMPLATES: LazyLock<Renderer> = LazyLock::new(|| MODEL.chat_templates.compile());

/// Admits a request on a worker whose KV cache holds `capacity` tokens, with a batch of four
/// sequences.
fn admit(capacity: usize, request: GenerateRequest) -> Result<Request, ServiceError> {
    Admission {
        model: &MODEL,
        templates: &TEMPLATES,
        name: "storyteller",
        max_sequence_tokens: capacity,
        max_num_seqs: 4,
    }
    .admit(request)
}

/// Returns a request with a prompt of `prompt` tokens and the given limits on its response.
fn sized(prompt: usize, max_tokens: Option<u32>, min_tokens: Option<u32>) -> GenerateRequest {
    GenerateRequest {
        input: Some(Input::TokenIds(TokenIds { ids: vec![7; prompt] })),
        stopping: Some(Stopping { max_tokens, min_tokens, ..Stopping::default() }),
        ..GenerateRequest::default()
    }
}

/// Returns the error of a prompt on a worker with `capacity` tokens, or `None` if it is admitted.
fn rejection(prompt: String, capacity: usize) -> Option<String> {
    let input = Some(Input::Prompt(prompt));
    let request = GenerateRequest { input, ..GenerateRequest::default() };
    admit(capacity, request).err().map(|error| error.to_string())
}

#[test]
fn a_prompt_that_is_too_long_for_the_model_is_invalid() {
    for (prompt, parts) in [
        (
            "once upon a time ".repeat(100_000),
            ["1700000 bytes are at least", "at most 1023 tokens"],
        ),
        (
            "a b c d e f ".repeat(200),
            [" tokens; at most 1023 tokens leave room", "context of 1024"],
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
    assert_eq!(rejection("once upon a time ".repeat(10), 256), None);
}

/// Returns the tokens that the worker would need. Its error must name its own limit.
fn needed(capacity: usize, request: GenerateRequest) -> u32 {
    match admit(capacity, request) {
        Err(ServiceError::ExceedsWorker { what, needed_tokens }) => {
            assert!(
                what.contains(&capacity.to_string()) && what.contains("--kv-cache-memory"),
                "{what}"
            );
            needed_tokens
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_request_that_exceeds_only_this_worker_may_go_to_another_one() {
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
fn the_token_limit_is_decided_by_the_first_worker() {
    let limit = |capacity, request| admit(capacity, request).unwrap().stopping.max_tokens.unwrap();
    assert_eq!(limit(1_024, sized(24, Some(100), None)), 100);
    assert_eq!(limit(1_024, sized(24, Some(5_000), None)), 1_000, "the model's context");
    assert_eq!(limit(1_024, sized(24, None, None)), 1_000);
    assert_eq!(limit(256, sized(56, None, None)), 200, "the capacity of the first worker");
    let resumed = |max_tokens| {
        let choices = vec![ResumedChoice { token_ids: vec![5; 10], ..Default::default() }];
        let resume = Some(Resume { choices, digest: MODEL.digest.clone(), max_tokens });
        let routing = Some(Routing { resume, ..Default::default() });
        GenerateRequest { routing, ..sized(56, None, None) }
    };
    assert_eq!(limit(1_024, resumed(200)), 200, "as decided by the first worker");
    assert_eq!(limit(1_024, resumed(0)), 968, "the router does not know the limit");
    assert_eq!(needed(256, resumed(300)), 356);
    let error = admit(1_024, resumed(2_000)).unwrap_err();
    assert!(matches!(error, ServiceError::Mismatch(_)), "above the context: {error:?}");
}

#[test]
fn an_accepted_request_without_tokens_may_start_on_any_worker() {
    let resume = Some(Resume { max_tokens: 50, ..Resume::default() });
    let routing = Some(Routing { resume, suspect: true, ..Routing::default() });
    let request = admit(256, GenerateRequest { routing, ..sized(10, None, None) }).unwrap();
    assert!(request.accepted_before && request.suspect && request.resumed.is_empty());
    assert_eq!(request.stopping.max_tokens, Some(50));
    let new = admit(256, sized(10, None, None)).unwrap();
    assert!(!new.accepted_before && !new.suspect);
}

/// Admits a resumed request for two choices and returns their resume state.
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
fn tokens_of_another_worker_are_resumed() {
    let first = Resumed { tokens: vec![5, 6], text_bytes: 7, ended: false };
    let second = Resumed { tokens: vec![9], text_bytes: 3, ended: true };
    assert_eq!(resumed(|_| ()), Ok(vec![first, second]));
    let without_tokens = resumed(|r| r.choices = vec![ResumedChoice::default(); 2]);
    assert_eq!(without_tokens, Ok(vec![]), "the same as a new request");
}

#[test]
fn invalid_resume_state_is_a_mismatch_and_not_the_client_s_mistake() {
    let mismatch = |change: fn(&mut Resume)| resumed(change).unwrap_err();
    for (error, parts) in [
        (mismatch(|r| r.digest = "beef".into()), ["routing.resume.digest", "\"beef\" is not"]),
        (mismatch(|r| r.digest = String::new()), ["routing.resume.digest", "\"\" is not"]),
        (mismatch(|r| drop(r.choices.pop())), ["routing.resume.choices", "1 entries for 2"]),
        (
            mismatch(|r| r.choices[1].token_ids.push(4_000_000)),
            ["routing.resume.choices[1].token_ids[1]", "4000000"],
        ),
        (
            mismatch(|r| r.choices[0].token_ids = vec![1; 2_000]),
            ["routing.resume.choices[0].token_ids", "2000 tokens are above"],
        ),
        (
            mismatch(|r| r.choices[0].finished = Some(Finished::default())),
            ["routing.resume", "every choice has ended"],
        ),
    ] {
        let message = error.to_string();
        assert!(matches!(error, ServiceError::Mismatch(_)), "{error:?}");
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }
    // A worker with a larger KV cache could have generated these, and can resume them.
    let error = mismatch(|r| r.choices[0].token_ids = vec![1; 100]);
    assert!(matches!(error, ServiceError::ExceedsWorker { .. }), "{error:?}");
}

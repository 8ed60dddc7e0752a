//! Invalid requests get an error that names field, value and limit, and do not affect other
//! requests.

use std::time::Duration;

use stoker_proto::v1::{
    Chat, ChatMessage, GenerateRequest, Guided, ResponseOptions, Resume, Routing, Sampling,
    StopCondition, Stopping, TokenIds, generate_request::Input, guided::Form, stop_condition::Kind,
};
use stoker_shared::ServiceError;
use tonic::{Code, Request, Status};

use crate::support::{cluster, complete, inference, request};

/// The fields that a status names.
fn fields(status: &Status) -> Vec<String> {
    match ServiceError::from(status) {
        ServiceError::Invalid(violations) => violations.into_iter().map(|v| v.field).collect(),
        ServiceError::Unsupported(field) => vec![field],
        other => vec![format!("{other:?}")],
    }
}

fn with(change: impl FnOnce(&mut GenerateRequest)) -> GenerateRequest {
    let mut wrong = request("Once", 1, 4);
    change(&mut wrong);
    wrong
}

fn sampled(change: impl FnOnce(&mut Sampling)) -> GenerateRequest {
    with(|r| change(r.sampling.get_or_insert_default()))
}

fn stopped(change: impl FnOnce(&mut Stopping)) -> GenerateRequest {
    with(|r| change(r.stopping.get_or_insert_default()))
}

fn candidates(request: &mut GenerateRequest, top_candidates: u32, output_logprobs: bool) {
    request.response =
        Some(ResponseOptions { output_logprobs, top_candidates, ..ResponseOptions::default() });
}

/// A conversation with messages of these roles.
fn chat(roles: &[&str], change: impl FnOnce(&mut Chat)) -> GenerateRequest {
    let message = |role: &&str| ChatMessage {
        role: (*role).to_owned(),
        content: "A fox".into(),
        ..ChatMessage::default()
    };
    let mut chat = Chat { messages: roles.iter().map(message).collect(), ..Chat::default() };
    change(&mut chat);
    with(|r| r.input = Some(Input::Chat(chat)))
}

fn stop(text: &str) -> StopCondition {
    StopCondition { kind: Some(Kind::Text(text.into())) }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_request_is_refused_by_field_and_affects_no_other_request() {
    let cluster = cluster(1).await;
    let address = cluster.address().to_string();
    let mut client = inference(&address).await;
    let undisturbed = complete(&mut client, request("A fox", 5, 200)).await.unwrap();
    let mut other = client.clone();
    let bystander =
        tokio::spawn(async move { complete(&mut other, request("A fox", 5, 200)).await });

    let invalid = Code::InvalidArgument;
    let unsupported = Code::Unimplemented;
    let cases = [
        (with(|r| r.input = None), invalid, "input"),
        (with(|r| r.priority = Some(1001)), invalid, "priority"),
        (with(|r| r.input = Some(Input::Prompt(String::new()))), invalid, "prompt"),
        (with(|r| r.input = Some(Input::Prompt("word ".repeat(20_000)))), invalid, "prompt"),
        (with(|r| r.input = Some(Input::TokenIds(TokenIds::default()))), invalid, "token_ids"),
        (
            with(|r| r.input = Some(Input::TokenIds(TokenIds { ids: vec![1, 4_000_000] }))),
            invalid,
            "token_ids[1]",
        ),
        (with(|r| r.request_id = "two words".into()), invalid, "request_id"),
        (with(|r| r.cache_salt = "x".repeat(129)), invalid, "cache_salt"),
        (sampled(|s| s.temperature = Some(f32::NAN)), invalid, "sampling.temperature"),
        (sampled(|s| s.temperature = Some(-0.5)), invalid, "sampling.temperature"),
        (sampled(|s| s.temperature = Some(1e30)), invalid, "sampling.temperature"),
        (sampled(|s| s.top_p = Some(0.0)), invalid, "sampling.top_p"),
        (sampled(|s| s.min_p = Some(f32::INFINITY)), invalid, "sampling.min_p"),
        (stopped(|s| s.max_tokens = Some(0)), invalid, "stopping.max_tokens"),
        (stopped(|s| s.conditions = vec![stop("x"); 17]), invalid, "stopping.conditions"),
        (stopped(|s| s.conditions = vec![stop("")]), invalid, "stopping.conditions[0]"),
        (
            stopped(|s| s.conditions = vec![stop(&"x".repeat(257))]),
            invalid,
            "stopping.conditions[0]",
        ),
        (
            with(|r| {
                r.routing = Some(Routing { resume: Some(Resume::default()), ..Routing::default() });
            }),
            invalid,
            "routing",
        ),
        (sampled(|s| s.frequency_penalty = Some(2.5)), invalid, "sampling.frequency_penalty"),
        (sampled(|s| s.presence_penalty = Some(-3.0)), invalid, "sampling.presence_penalty"),
        (sampled(|s| s.repetition_penalty = Some(0.0)), invalid, "sampling.repetition_penalty"),
        (sampled(|s| s.num_sequences = Some(0)), invalid, "sampling.num_sequences"),
        (sampled(|s| s.num_sequences = Some(17)), invalid, "sampling.num_sequences"),
        (
            sampled(|s| s.logit_bias = [(7, 1.0), (4_000_000, 1.0)].into()),
            invalid,
            "sampling.logit_bias[4000000]",
        ),
        (sampled(|s| s.logit_bias = [(7, 100.5)].into()), invalid, "sampling.logit_bias[7]"),
        (
            sampled(|s| s.logit_bias = (0..1025).map(|token| (token, 1.0)).collect()),
            invalid,
            "sampling.logit_bias",
        ),
        (stopped(|s| s.min_tokens = Some(5)), invalid, "stopping.min_tokens"),
        (
            stopped(|s| (s.min_tokens, s.max_tokens) = (Some(2000), None)),
            invalid,
            "stopping.min_tokens",
        ),
        (
            stopped(|s| {
                s.conditions = vec![StopCondition { kind: Some(Kind::TokenId(4_000_000)) }];
            }),
            invalid,
            "stopping.conditions[0].token_id",
        ),
        (with(|r| candidates(r, 21, true)), invalid, "response.top_candidates"),
        (with(|r| candidates(r, 2, false)), invalid, "response.top_candidates"),
        (
            with(|r| r.guided = Some(Guided { form: Some(Form::JsonObject(true)) })),
            unsupported,
            "guided",
        ),
        (chat(&[], |_| ()), invalid, "chat.messages"),
        // What the template of the bundled model refuses.
        (chat(&["assistant"], |_| ()), invalid, "chat.messages"),
        (chat(&["user", "robot"], |_| ()), invalid, "chat.messages"),
        (chat(&["user"], |c| c.tools_json = vec!["{".into()]), invalid, "chat.tools_json[0]"),
        (chat(&["user"], |c| c.tools_json = vec!["1".into()]), invalid, "chat.tools_json[0]"),
        (
            chat(&["user"], |c| c.template_kwargs_json = "[".repeat(100_000)),
            invalid,
            "chat.template_kwargs_json",
        ),
        (
            chat(&["user"], |c| c.messages[0].tool_calls_json = vec!["[]".into()]),
            invalid,
            "chat.messages[0].tool_calls_json[0]",
        ),
        (chat(&["user"], |c| c.messages[0].content = "a ".repeat(2000)), invalid, "chat"),
        (
            GenerateRequest { no_special_tokens: true, ..chat(&["user"], |_| ()) },
            invalid,
            "no_special_tokens",
        ),
    ];
    for (request, code, field) in cases {
        let status = complete(&mut client, request.clone()).await.unwrap_err();
        assert_eq!(status.code(), code, "{field}: {status:?}");
        assert_eq!(fields(&status), [field], "{status:?}");
    }

    let unknown = with(|r| r.model = "gpt".into());
    let status = complete(&mut client, unknown).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("`gpt`") && status.message().contains("storyteller"));

    // A message over the size limit gets a status, and the connection stays open.
    let huge = with(|r| r.input = Some(Input::Prompt("x".repeat(5 << 20))));
    let status = complete(&mut client, huge).await.unwrap_err();
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status:?}");

    let mut late = Request::new(request("A fox", 5, 900));
    // Shorter than the whole response takes and longer than its headers take, since the client's
    // own timer would report CANCELLED.
    late.set_timeout(Duration::from_millis(30));
    let late = match client.generate(late).await {
        Ok(stream) => crate::support::read(stream.into_inner(), || ()).await.unwrap_err(),
        Err(status) => status,
    };
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");

    let bystander = bystander.await.unwrap().unwrap();
    assert_eq!(bystander.ids, undisturbed.ids);
    assert_eq!(cluster.shutdown(Duration::from_secs(30)).await, 0);
}

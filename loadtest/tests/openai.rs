//! Servers with OpenAI's HTTP API: what is sent, and everything that such a server may do wrong.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::AbortHandle};

use crate::support::{Files, RunOutput, Script, Server, alone, end, program};

/// A server whose responses are scripted by the seed of a request. Dropping it closes it.
struct HttpServer {
    address: SocketAddr,
    bodies: Arc<Mutex<Vec<Value>>>,
    task: AbortHandle,
}

impl HttpServer {
    async fn new(respond: impl Fn(u64) -> Response + Clone + Send + Sync + 'static) -> Self {
        Self::with_models(&["tiny"], respond).await
    }

    async fn with_models(
        models: &[&str],
        respond: impl Fn(u64) -> Response + Clone + Send + Sync + 'static,
    ) -> Self {
        let bodies = Arc::<Mutex<Vec<Value>>>::default();
        let seen = Arc::clone(&bodies);
        let completion = move |body: Bytes| {
            let body: Value = serde_json::from_slice(&body).unwrap();
            let seed = body["seed"].as_u64().unwrap();
            seen.lock().unwrap().push(body);
            let respond = respond.clone();
            async move { respond(seed) }
        };
        let models: Vec<_> = models.iter().map(|id| json!({"id": id})).collect();
        let models = json!({"object": "list", "data": models}).to_string();
        let router = Router::new()
            .route("/v1/models", get(|| async move { models }))
            .route("/v1/completions", post(completion.clone()))
            .route("/v1/chat/completions", post(completion));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = async move { axum::serve(listener, router).await.unwrap() };
        Self { address, bodies, task: tokio::spawn(serve).abort_handle() }
    }

    async fn run(&self, arguments: &str) -> RunOutput {
        let files = Files::new();
        let child = program()
            .args(["--target", "openai", "--endpoint", &self.address.to_string()])
            .args(["--json", "results.json", "--max-lateness", "1h"])
            .args(arguments.split_whitespace())
            .current_dir(files.path(""))
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        end(child, &files).await
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn event(choices: Value, usage: Value) -> String {
    let event = json!({"id": "cmpl-7", "model": "tiny-1", "choices": choices, "usage": usage});
    format!("data: {event}\n\n")
}

fn text(text: &str, reason: Value) -> String {
    event(json!([{"index": 0, "text": text, "finish_reason": reason}]), Value::Null)
}

fn usage(tokens: u32) -> String {
    event(json!([]), json!({"prompt_tokens": 5, "completion_tokens": tokens}))
}

const DONE: &str = "data: [DONE]\n\n";

fn events(body: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")], body.into()).into_response()
}

/// Three tokens in two events.
fn good() -> Response {
    let pieces = [text(" a", Value::Null), text(" b c", "length".into()), usage(3), DONE.into()];
    events(Body::from_stream(stream::iter(pieces).map(Ok::<_, std::io::Error>)))
}

const PROMPTS: &str = "--prompts prompts.txt";

#[tokio::test]
async fn completions_are_requested_and_counted() {
    let server = HttpServer::new(|_| good()).await;
    let load = format!("{PROMPTS} --requests 7 --max-tokens 9 --temperature 0.5 --ignore-eos");
    let ran = server.run(&load).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.table, ran.errors);
    for (path, count) in [
        ("requests.complete", 7),
        ("tokens.completion", 21),
        ("tokens.prompt", 35),
        ("finish_reasons.length", 7),
        ("itl_seconds.count", 7),
        ("ttft_seconds.count", 7),
    ] {
        assert_eq!(ran.count(path), count, "{path}: {}", ran.table);
    }
    assert_eq!(ran.at("model"), "tiny-1");
    let bodies = server.bodies.lock().unwrap();
    let first = bodies.iter().find(|body| body["seed"] == 0).unwrap();
    let expected = json!({
        "model": "tiny", "prompt": "Once upon a time", "max_tokens": 9, "temperature": 0.5, "seed": 0,
        "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true},
    });
    assert_eq!(first, &expected);
    assert!(ran.table.contains("(openai)") && !ran.table.contains("mean time by stage"));
}

#[tokio::test]
async fn a_conversation_is_sent_as_messages() {
    let server = HttpServer::new(|_| {
        let delta = |delta: Value, reason: Value| {
            event(json!([{"delta": delta, "finish_reason": reason}]), Value::Null)
        };
        let thought = delta(json!({"reasoning_content": "hm"}), Value::Null);
        let body = [
            delta(json!({"role": "assistant", "content": ""}), Value::Null),
            thought,
            delta(json!({"content": "yes"}), "stop".into()),
            DONE.into(),
        ];
        events(body.concat())
    })
    .await;
    let load = format!("--target openai-chat {PROMPTS} --requests 2 --turns 2");
    let ran = server.run(&load.replace("--target openai-chat ", "")).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let texts: Vec<_> =
        server.bodies.lock().unwrap().drain(..).map(|b| b["prompt"].clone()).collect();
    assert_eq!(texts, ["Once upon a time", "Once upon a timehmyes\nThe fox"]);

    let files = Files::new();
    let output = program()
        .args(["--target", "openai-chat", "--endpoint", &server.address.to_string(), "--json", "-"])
        .args("--prompts prompts.txt --requests 2 --turns 2 --max-lateness 1h".split(' '))
        .current_dir(files.path(""))
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    // Without a usage, events are counted, thoughts among them.
    assert_eq!(json["tokens"]["completion"], 4);
    assert_eq!(json["finish_reasons"]["stop"], 2);
    let bodies = server.bodies.lock().unwrap();
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    let second = [
        message("user", "Once upon a time"),
        message("assistant", "hmyes"),
        message("user", "The fox"),
    ];
    assert_eq!(bodies[1]["messages"], json!(second));
    assert!(bodies[1]["prompt"].is_null());
}

#[tokio::test]
async fn lengths_of_synthetic_prompts_are_learned_from_the_usage() {
    // A token is a word, but for one word that is two.
    let server = HttpServer::new(|_| good()).await;
    let ran = server.run("--requests 3").await;
    assert_eq!(ran.code, Some(2), "five tokens for any prompt: {}", ran.errors);
    assert!(ran.errors.contains("hardly any common word"), "{}", ran.errors);
    let server =
        HttpServer::new(|_| events([text(" a", "length".into()), DONE.into()].concat())).await;
    let ran = server.run("--requests 3").await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert!(ran.errors.contains("reports no usage; use --prompts"), "{}", ran.errors);
}

#[tokio::test]
async fn whatever_a_server_does_wrong_is_named() {
    let server = HttpServer::new(|seed| match seed {
        0 => (StatusCode::TOO_MANY_REQUESTS, r#"{"error": {"message": "slow down"}}"#)
            .into_response(),
        1 => (StatusCode::BAD_GATEWAY, "no upstream").into_response(),
        2 => (StatusCode::OK, "{}").into_response(),
        3 => events([text(" a", Value::Null), "data: {oops\n\n".into()].concat()),
        4 => events([text(" a", Value::Null), DONE.into()].concat()),
        5 => events(format!("data: {}\n\n", json!({"error": {"message": "out of memory"}}))),
        6 => events(text(" a", "content_filter".into())),
        7 => {
            let pieces = [Ok(text(" a", Value::Null)), Err(std::io::Error::other("cut"))];
            events(Body::from_stream(stream::iter(pieces)))
        }
        8 => {
            let token = stream::iter([Ok::<_, std::io::Error>(text(" a", Value::Null))]);
            events(Body::from_stream(token.chain(stream::pending())))
        }
        9 => events(""),
        _ => good(),
    })
    .await;
    let ran = server.run(&format!("{PROMPTS} --requests 20 --concurrency 20 --deadline 2s")).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    // Whether the head of a response that breaks off has arrived by then is up to the server.
    let failed = ran.count("requests.refused") + ran.count("requests.lost");
    assert_eq!((ran.count("requests.complete"), failed), (10, 10), "{}", ran.table);
    let errors = ran.at("errors").as_array().unwrap();
    let counts: Vec<_> = errors
        .iter()
        .map(|error| (error["code"].as_str().unwrap(), error["count"].as_u64().unwrap()))
        .collect();
    let expected = [
        ("DEADLINE_EXCEEDED", 1),
        ("HTTP 429", 1),
        ("HTTP 502", 1),
        ("INTERNAL", 4),
        ("UNAVAILABLE", 3),
    ];
    assert_eq!(counts, expected, "{}", ran.table);
    assert!(ran.table.contains("slow down") && ran.table.contains("no upstream"), "{}", ran.table);
}

#[tokio::test]
async fn single_mistakes_have_messages_that_help() {
    type Respond = fn(u64) -> Response;
    let cases: [(Respond, &str); 4] = [
        (|_| (StatusCode::OK, "{}").into_response(), "no stream of events"),
        (|_| events("data: {oops\n\n"), "an event is no JSON"),
        (|_| events(text(" a", "content_filter".into())), "ended with \"content_filter\""),
        (|_| events(text(" a", Value::Null)), "ended before the response was complete"),
    ];
    for (respond, part) in cases {
        let server = HttpServer::new(respond).await;
        let ran = server.run(&format!("{PROMPTS} --requests 1")).await;
        assert_eq!(ran.code, Some(1), "{part}: {}", ran.errors);
        assert!(ran.table.contains(part), "{part}: {}", ran.table);
    }
}

#[tokio::test]
async fn the_model_is_the_only_one_or_has_to_be_named() {
    for (models, parts) in [
        (&["a", "b"][..], &["2 models", "\"a\"", "--model"][..]),
        (&[], &["no model is served", "--model"]),
    ] {
        let server = HttpServer::with_models(models, |_| good()).await;
        let ran = server.run(PROMPTS).await;
        assert_eq!(ran.code, Some(1));
        for part in parts {
            assert!(ran.errors.contains(part), "{part}: {}", ran.errors);
        }
        let ran = server.run(&format!("{PROMPTS} --model b --requests 1")).await;
        assert_eq!(ran.code, Some(0), "{}", ran.errors);
        assert_eq!(server.bodies.lock().unwrap()[0]["model"], "b");
    }
}

#[tokio::test]
async fn the_other_protocol_is_noticed() {
    let grpc = Server::new(|_, _| Script::Respond).await;
    let address = grpc.address.to_string();
    let folder = Files::new();
    let arguments = ["--target", "openai", "--endpoint", &address, "--prompts", "prompts.txt"];
    let (code, _, error) = alone(&arguments, &folder.path("")).await;
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains(&address) && error.contains("OpenAI's HTTP API"), "{error}");

    let http = HttpServer::new(|_| good()).await;
    let address = http.address.to_string();
    let arguments = ["--endpoint", &address, "--prompts", "prompts.txt", "--requests", "1"];
    let (code, _, error) = alone(&arguments, &folder.path("")).await;
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains(&address) && error.contains("--target openai"), "{error}");

    drop(http);
    let gone = ["--target", "openai", "--endpoint", &address, "--prompts", "prompts.txt"];
    let (code, _, error) = alone(&gone, &folder.path("")).await;
    assert_eq!(code, Some(1));
    assert!(error.contains(&address) && error.contains("refused"), "{error}");
}

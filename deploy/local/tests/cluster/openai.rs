//! OpenAI's HTTP API: its official client, bad requests, and models that come and go.

use std::{collections::BTreeSet, process::Command, time::Duration};

use serde_json::{Value, json};
use stoker_proto::v1::ListModelsRequest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    clients::{find, root},
    support::{Process, TEST_TIMEOUT, control, scrape, wait_for_load},
};

/// A worker with the bundled model under another name.
fn worker(name: &str) -> Process {
    Process::start("stoker-worker", &["--model", "storyteller", "--model-name", name])
}

/// A router with an HTTP listener, and its address.
fn router(workers: &str, flags: &[&str]) -> (Process, String) {
    let own = [
        "--workers",
        workers,
        "--http-listen",
        "127.0.0.1:0",
        "--metrics-listen",
        "127.0.0.1:0",
        "--model-alias",
        "gpt-4o-mini=storyteller",
    ];
    let router = Process::start("stoker-router", &[&own[..], flags].concat());
    let http = router.started["http"].as_str().unwrap().to_owned();
    (router, http)
}

/// A router with one worker, which it can use.
async fn cluster(flags: &[&str]) -> (Process, Process, String) {
    let worker = worker("storyteller");
    let (router, http) = router(&worker.address, flags);
    wait_for_load(&mut control(&router.address).await, |load| load.total_kv_blocks > 0).await;
    (worker, router, http)
}

/// Sends bytes, and returns the response until the server closes the connection.
async fn exchange(http: &str, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(http).await.unwrap();
    // A server that refuses a body may close the connection before it has read all.
    let _ = socket.write_all(bytes).await;
    let mut response = Vec::new();
    let _ = timeout(TEST_TIMEOUT, socket.read_to_end(&mut response)).await.unwrap();
    String::from_utf8_lossy(&response).into_owned()
}

/// Connects, and sends a chat. Its response is not read.
async fn begin_chat(http: &str, body: &Value) -> TcpStream {
    let body = body.to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut socket = TcpStream::connect(http).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    socket
}

/// Sends a request, and returns its status and its JSON.
async fn send(http: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let response = exchange(http, request.as_bytes()).await;
    let status = response.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status: {response:?}"));
    let body = response.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {response}")))
}

async fn chat(http: &str, fields: Value) -> (u16, Value) {
    let mut body = json!({
        "messages": [{ "role": "user", "content": "Once upon a time" }],
        "max_tokens": 5,
        "seed": 1,
    });
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    send(http, "POST", "/v1/chat/completions", &body.to_string()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_of_python_works() {
    let works = ["-c", "import openai"];
    let Some(python) = find("STOKER_TEST_PYTHON", "python3", &works) else { return };
    let (_worker, _router, http) = cluster(&[]).await;
    let script = root().join("deploy/openai/client.py");
    let mut command = Command::new(python);
    command.arg(script).arg(format!("http://{http}/v1"));
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}{error}");
    assert!(out.lines().count() >= 20, "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_have_openais_errors_and_disturb_no_other() {
    let (worker, _router, http) = cluster(&[]).await;
    let long = json!({ "max_tokens": 300, "ignore_eos": true });
    let undisturbed = chat(&http, long.clone()).await.1["choices"].clone();
    let other = {
        let (http, long) = (http.clone(), long.clone());
        tokio::spawn(async move { chat(&http, long).await.1["choices"].clone() })
    };
    let part = json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }]);
    let ten_thousand = "a ".repeat(10_000);
    for (fields, status, param, code) in [
        (json!({ "model": "gpt-5" }), 404, json!("model"), json!("model_not_found")),
        (json!({ "tools": [{}] }), 400, json!("tools"), json!("unsupported_parameter")),
        (json!({ "best_of": 2 }), 400, json!("best_of"), json!("unsupported_parameter")),
        (json!({ "suffix": "x" }), 400, json!("suffix"), json!("unsupported_parameter")),
        (
            json!({ "response_format": { "type": "json_object" } }),
            400,
            json!("response_format"),
            json!("unsupported_parameter"),
        ),
        (json!({ "what": 1 }), 400, json!("what"), json!("unknown_parameter")),
        (json!({ "messages": "x" }), 400, json!("messages"), Value::Null),
        (json!({ "messages": [] }), 400, json!("messages"), Value::Null),
        (json!({ "messages": null }), 400, json!("messages"), Value::Null),
        (json!({ "messages": [{ "content": "x" }] }), 400, json!("messages"), Value::Null),
        (
            json!({ "messages": [{ "role": "assistant", "content": "x" }] }),
            400,
            json!("messages"),
            Value::Null,
        ),
        (json!({ "messages": part }), 400, json!("messages[0].content[0]"), Value::Null),
        (
            json!({ "messages": [{ "role": "user", "content": ten_thousand }] }),
            400,
            json!("messages"),
            json!("context_length_exceeded"),
        ),
        (json!({ "temperature": "hot" }), 400, json!("temperature"), Value::Null),
        (json!({ "temperature": 101 }), 400, json!("temperature"), Value::Null),
        (json!({ "n": 17 }), 400, json!("n"), Value::Null),
        (json!({ "n": 0 }), 400, json!("n"), Value::Null),
        (json!({ "max_tokens": 0 }), 400, json!("max_tokens"), Value::Null),
        (json!({ "max_tokens": -1 }), 400, json!("max_tokens"), Value::Null),
        (json!({ "stop": [""] }), 400, json!("stop"), Value::Null),
        (json!({ "stop": 1 }), 400, json!("stop"), Value::Null),
        (json!({ "logit_bias": { "x": 1 } }), 400, json!("logit_bias"), Value::Null),
        (json!({ "top_logprobs": 2 }), 400, json!("top_logprobs"), Value::Null),
        (json!({ "top_logprobs": 21, "logprobs": true }), 400, json!("top_logprobs"), Value::Null),
        (
            json!({ "stream_options": { "include_usage": true } }),
            400,
            json!("stream_options"),
            Value::Null,
        ),
        (json!({ "chat_template_kwargs": 1 }), 400, json!("chat_template_kwargs"), Value::Null),
    ] {
        let (got, body) = chat(&http, fields.clone()).await;
        let error = &body["error"];
        assert_eq!(
            (got, &error["param"], &error["code"]),
            (status, &param, &code),
            "{fields}: {body}"
        );
        assert!(error["message"].as_str().is_some_and(|text| text.len() > 5), "{body}");
        assert_eq!(error["type"], "invalid_request_error", "{body}");
    }
    for (method, path, body, status) in [
        ("POST", "/v1/chat/completions", "{ \"messages\": [", 400),
        ("POST", "/v1/chat/completions", "[]", 400),
        ("POST", "/v1/chat/completions", "", 400),
        ("POST", "/v1/completions", "{}", 400),
        ("POST", "/v1/embeddings", "{}", 404),
        ("GET", "/v1/chat/completions", "", 405),
        ("GET", "/v1/models/nothing", "", 404),
        ("POST", "/tokenize", "{ \"prompt\": 1 }", 400),
        ("POST", "/detokenize", "{ \"tokens\": [4000000] }", 400),
    ] {
        let (got, body) = send(&http, method, path, body).await;
        assert_eq!(got, status, "{method} {path}: {body}");
        assert!(body["error"]["message"].is_string(), "{body}");
    }
    let deep = format!("{{ \"messages\": {} }}", "[".repeat(100_000));
    assert_eq!(send(&http, "POST", "/v1/chat/completions", &deep).await.0, 400);
    assert_eq!(other.await.unwrap(), undisturbed);
    wait_for_load(&mut control(&worker.address).await, |load| load.running == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_and_headers_are_bounded() {
    let (_worker, router, http) = cluster(&["--request-read-timeout", "1s"]).await;
    let head = |length: &str| {
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Type: application/json\r\n{length}\r\n\r\n"
        )
    };
    // A gigabyte is announced, and one that says nothing of its length.
    let announced = exchange(&http, head("Content-Length: 1073741824").as_bytes()).await;
    assert!(announced.starts_with("HTTP/1.1 413"), "{announced}");
    let mut endless = head("Transfer-Encoding: chunked").into_bytes();
    for _ in 0..80 {
        endless.extend(b"10000\r\n");
        endless.extend([b' '; 0x10000]);
        endless.extend(b"\r\n");
    }
    let refused = exchange(&http, &endless).await;
    // The connection is closed while the client still sends, which may lose the response.
    assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 413"), "{refused}");
    // A body that does not arrive.
    let slow = exchange(&http, (head("Content-Length: 100") + "{").as_bytes()).await;
    assert!(slow.starts_with("HTTP/1.1 408") && slow.contains("--request-read-timeout"), "{slow}");
    // A head that does not end, and one that is too large.
    assert_eq!(exchange(&http, b"POST /v1").await, "");
    let large = format!("GET /health HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(1 << 20));
    let large = exchange(&http, large.as_bytes()).await;
    assert!(large.is_empty() || large.starts_with("HTTP/1.1 431"), "{large}");
    let form = exchange(&http, b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}").await;
    assert!(form.starts_with("HTTP/1.1 415"), "{form}");
    assert_eq!(chat(&http, json!({})).await.0, 200);
    assert_eq!(scrape(&router).await["stoker_router_requests_in_flight"], 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_stops_its_response() {
    let (worker, _router, http) = cluster(&[]).await;
    for stream in [false, true] {
        let body = json!({
            "messages": [{ "role": "user", "content": "Once" }],
            "ignore_eos": true,
            "n": 4,
            "stream": stream,
        });
        let socket = begin_chat(&http, &body).await;
        let mut watched = control(&worker.address).await;
        wait_for_load(&mut watched, |load| load.running == 4).await;
        drop(socket);
        wait_for_load(&mut watched, |load| load.running == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_holds_nothing_for_long() {
    let (worker, router, http) = cluster(&["--write-stall-timeout", "1s"]).await;
    let body = json!({
        "messages": [{ "role": "user", "content": "Once" }],
        "ignore_eos": true,
        "max_tokens": 400,
        "n": 16,
        "logprobs": true,
        "top_logprobs": 20,
        "stream": true,
    });
    let socket = begin_chat(&http, &body).await;
    let mut watched = control(&worker.address).await;
    wait_for_load(&mut watched, |load| load.running > 0).await;
    // Nothing is read: some 20 MB do not fit into the buffers of the system.
    wait_for_load(&mut watched, |load| load.running + load.waiting == 0).await;
    let released = async {
        while scrape(&router).await["stoker_router_requests_in_flight"] > 0.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TEST_TIMEOUT, released).await.unwrap();
    assert_eq!(chat(&http, json!({})).await.0, 200);
    drop(socket);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_of_a_response_is_bounded() {
    let (_worker, router, http) = cluster(&["--max-request-memory", "4MiB"]).await;
    let large = json!({
        "max_tokens": 400,
        "n": 16,
        "ignore_eos": true,
        "logprobs": true,
        "top_logprobs": 20,
    });
    let (status, body) = chat(&http, large.clone()).await;
    let message = body["error"]["message"].as_str().unwrap_or_default();
    assert!(matches!(status, 400 | 429) && message.contains("--max-request-memory"), "{body}");
    // Streamed, nothing is kept.
    let mut streamed = large;
    streamed["stream"] = json!(true);
    streamed["messages"] = json!([{ "role": "user", "content": "Once" }]);
    let mut socket = begin_chat(&http, &streamed).await;
    let (mut text, mut buffer) = (String::new(), vec![0; 1 << 16]);
    while !text.contains("data: [DONE]") {
        let read = timeout(TEST_TIMEOUT, socket.read(&mut buffer)).await.unwrap().unwrap();
        assert!(read > 0, "the stream ends early");
        let kept = text.floor_char_boundary(text.len().saturating_sub(64));
        text = text.split_off(kept);
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    assert_eq!(chat(&http, json!({})).await.0, 200);
    assert_eq!(scrape(&router).await["stoker_router_requests_in_flight"], 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_leave_room_for_one_more() {
    let (_worker, _router, http) = cluster(&["--max-connections", "64"]).await;
    let mut idle = Vec::new();
    for _ in 0..64 {
        let mut socket = TcpStream::connect(&http).await.unwrap();
        // One request, after which the connection is kept open.
        socket.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut response = [0; 64];
        assert!(timeout(TEST_TIMEOUT, socket.read(&mut response)).await.unwrap().unwrap() > 0);
        idle.push(socket);
    }
    // The longest idle one makes room, once it has been idle for ten seconds.
    let (status, _) = timeout(Duration::from_secs(60), chat(&http, json!({}))).await.unwrap();
    assert_eq!(status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn models_come_and_go_while_the_router_runs() {
    let first = worker("storyteller");
    let second = worker("other");
    let (router, http) = router(&format!("{},{}", first.address, second.address), &[]);
    let names = async |wanted: &[&str]| {
        let wanted: BTreeSet<_> = wanted.iter().map(|name| (*name).to_owned()).collect();
        let found = async {
            loop {
                let (_, list) = send(&http, "GET", "/v1/models", "").await;
                let ids = list["data"].as_array().unwrap().iter();
                let ids: BTreeSet<_> = ids.map(|m| m["id"].as_str().unwrap().to_owned()).collect();
                if ids == wanted {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(TEST_TIMEOUT, found).await.unwrap_or_else(|_| panic!("not {wanted:?}"));
    };
    names(&["storyteller", "gpt-4o-mini", "other"]).await;
    for model in ["storyteller", "gpt-4o-mini", "other"] {
        let (status, body) = chat(&http, json!({ "model": model })).await;
        assert_eq!(status, 200, "{body}");
        let served = if model == "other" { "other" } else { "storyteller" };
        assert_eq!(body["model"], served);
    }
    let (status, body) = chat(&http, json!({ "model": "none" })).await;
    let message = body["error"]["message"].as_str().unwrap();
    assert_eq!(status, 404);
    for known in ["`none`", "storyteller", "other", "gpt-4o-mini"] {
        assert!(message.contains(known), "{message}");
    }
    let (status, body) = chat(&http, json!({})).await;
    assert_eq!((status, &body["error"]["param"]), (400, &json!("model")), "{body}");

    let listed = control(&router.address).await.list_models(ListModelsRequest {}).await;
    let listed = listed.unwrap().into_inner().models;
    let storyteller = listed.iter().find(|model| model.model == "storyteller").unwrap();
    assert_eq!((storyteller.workers, storyteller.has_chat_template), (1, true));
    assert_eq!(storyteller.aliases, ["gpt-4o-mini"]);

    drop(second);
    names(&["storyteller", "gpt-4o-mini"]).await;
    assert_eq!(chat(&http, json!({ "model": "storyteller" })).await.0, 200);
    drop(first);
    names(&[]).await;
    let (status, body) = send(&http, "GET", "/health", "").await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("service_unavailable")), "{body}");
    assert_eq!(chat(&http, json!({ "model": "storyteller" })).await.0, 503);
}

//! Streamed completions over OpenAI's HTTP API. A token is a word.

use std::{convert::Infallible, io};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::Pace;

/// Tokens of a response without `max_tokens`.
const TOKENS: u32 = 128;

/// Serves on `listener`.
pub async fn serve(listener: TcpListener, pace: Pace) -> io::Result<()> {
    let router = Router::new()
        .route("/v1/models", get(models))
        .route("/health", get(|| async {}))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat_completions))
        .with_state(pace);
    axum::serve(tcp_nodelay(listener), router).await
}

fn tcp_nodelay(listener: TcpListener) -> impl axum::serve::Listener<Addr: std::fmt::Debug> {
    use axum::serve::ListenerExt;
    listener.tap_io(|stream| {
        // Tokens would wait for each other. A socket that refuses it is as good as closed.
        let _ = stream.set_nodelay(true);
    })
}

async fn models() -> Response {
    let models = json!({"object": "list", "data": [{"id": "null-model", "object": "model", "owned_by": "null"}]});
    reply(StatusCode::OK, &models)
}

#[derive(Deserialize)]
struct Request {
    prompt: Option<Value>,
    messages: Option<Value>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    #[serde(default)]
    stream: bool,
}

async fn completions(State(pace): State<Pace>, body: Bytes) -> Response {
    respond(pace, &body, false)
}

async fn chat_completions(State(pace): State<Pace>, body: Bytes) -> Response {
    respond(pace, &body, true)
}

fn respond(pace: Pace, body: &[u8], chat: bool) -> Response {
    let request: Request = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(error) => {
            let error = json!({"error": {"message": error.to_string(), "code": 400}});
            return reply(StatusCode::BAD_REQUEST, &error);
        }
    };
    let tokens = request.max_tokens.or(request.max_completion_tokens).unwrap_or(TOKENS);
    let text = request.prompt.or(request.messages).unwrap_or_default().to_string();
    let prompt_tokens = text.split_whitespace().count();
    let usage = json!({
        "prompt_tokens": prompt_tokens, "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens as usize,
    });
    let object = if chat { "chat.completion.chunk" } else { "text_completion" };
    let event = |choices: Value, usage: &Value| {
        let event = json!({
            "id": "cmpl-null", "object": object, "created": 0, "model": "null-model", "choices": choices,
            "usage": usage,
        });
        Bytes::from(format!("data: {event}\n\n"))
    };
    let choice = |text: &str, reason: Value| {
        let mut choice = json!({"index": 0, "finish_reason": reason});
        if chat {
            choice["delta"] = json!({"role": "assistant", "content": text});
        } else {
            choice["text"] = text.into();
        }
        json!([choice])
    };
    if !request.stream {
        let text = " word".repeat(tokens as usize);
        let mut whole = choice(&text, "length".into());
        if chat {
            whole[0]["message"] = whole[0]["delta"].take();
        }
        let object = object.trim_end_matches(".chunk");
        let body = json!({
            "id": "cmpl-null", "object": object, "created": 0, "model": "null-model", "choices": whole,
            "usage": usage,
        });
        return reply(StatusCode::OK, &body);
    }
    // All tokens are the same bytes, which are made once.
    let token = event(choice(" word", Value::Null), &Value::Null);
    let last = event(choice("", "length".into()), &Value::Null);
    let end = [last, event(json!([]), &usage), Bytes::from_static(b"data: [DONE]\n\n")];
    let tokens = stream::iter(0..tokens).then(move |index| {
        let token = token.clone();
        async move {
            pace.wait(index).await;
            token
        }
    });
    let events = tokens.chain(stream::iter(end)).map(Ok::<_, Infallible>);
    let headers = [(header::CONTENT_TYPE, "text/event-stream")];
    (headers, Body::from_stream(events)).into_response()
}

fn reply(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

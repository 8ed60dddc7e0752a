//! Calls to a server with OpenAI's API: streamed completions over HTTP/1.1.

mod connector;
mod wire;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use stoker_shared::{
    client::{Address, Credentials, CredentialsError},
    deadline::Deadline,
    error::{quoted, root_cause},
};
use tokio::time::timeout;

use crate::{
    error::Error,
    targets::{
        outcome::{Accepted, CallEnd, Completion, Failure, LiveCounters, ReceivedResponse},
        request::LoadRequest,
        sse::{EventSplitter, TooLong},
    },
};
use connector::Connector;
use wire::{Body, Chunk, Models, error_message, finish_of};

/// Time limit of a connection, and of a request before the load test.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit of what follows the last event.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum size of a response that is not streamed, in bytes.
const MAX_BODY: usize = 4 << 20;

/// A server, and its connections: one for each stream, which are used again.
#[derive(Debug, Clone)]
pub(super) struct OpenAi {
    client: Client<Connector, Full<Bytes>>,
    base: String,
    chat: bool,
    /// The header with the API key.
    key: Option<HeaderValue>,
}

impl OpenAi {
    /// Creates a client of the server at `address`.
    pub(super) fn new(
        address: &Address,
        chat: bool,
        credentials: &Credentials,
    ) -> Result<Self, Error> {
        let wrong = |error: CredentialsError| Error::Connect(error.into());
        let tls = address.is_tls().then(|| credentials.tls()).transpose().map_err(wrong)?;
        let key = credentials.bearer().map_err(wrong)?;
        let connector = Connector::new(tls, TIMEOUT);
        let client = Client::builder(TokioExecutor::new()).pool_idle_timeout(None).build(connector);
        let scheme = if address.is_tls() { "https" } else { "http" };
        Ok(Self { client, base: format!("{scheme}://{}", address.authority()), chat, key })
    }

    /// Adds the API key.
    fn authorize(&self, mut request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
        if let Some(key) = &self.key {
            request.headers_mut().insert(header::AUTHORIZATION, key.clone());
        }
        request
    }

    /// Returns the name of the model to request: `name`, or the only one that is served.
    pub(super) async fn model(&self, name: &str) -> Result<String, Error> {
        let url = format!("{}/v1/models", self.base);
        let failed = |why: String| Error::Failed(format!("GET {url}: {why}"));
        let request = Request::get(&url).body(Full::default());
        let request = request.map_err(|error| failed(error.to_string()))?;
        let (status, body) = timeout(TIMEOUT, self.fetch(request))
            .await
            .map_err(|_| failed(format!("no response within {TIMEOUT:?}")))?
            .map_err(|why| failed(format!("{why}; is this a server with OpenAI's HTTP API?")))?;
        // Not every server lists its models, and a name is enough.
        if !name.is_empty() {
            return Ok(name.to_owned());
        }
        if status != StatusCode::OK {
            return Err(failed(format!("{status}; name the model with --model")));
        }
        let models: Models = serde_json::from_slice(&body)
            .map_err(|error| failed(format!("no list of models ({error}); use --model")))?;
        match models.data.as_slice() {
            [model] => Ok(model.id.clone()),
            [] => Err(failed("no model is served; name one with --model".into())),
            [first, second, ..] => Err(failed(format!(
                "{} models are served, among them {:?} and {:?}; choose one with --model",
                models.data.len(),
                first.id,
                second.id
            ))),
        }
    }

    /// Returns the number of tokens of a prompt, which the usage of a response of one token reports.
    pub(super) async fn prompt_tokens(&self, model: &str, text: &str) -> Result<u32, Error> {
        let request = LoadRequest {
            model: model.to_owned(),
            prompt: text.to_owned(),
            max_tokens: Some(1),
            ..LoadRequest::default()
        };
        let mut response = ReceivedResponse::new(tokio::time::Instant::now(), None);
        let live = LiveCounters::default();
        let deadline = Deadline::after(10 * TIMEOUT);
        match self.call(&request, deadline, &live, &mut response).await {
            Ok(Completion { usage: Some(usage), .. }) => Ok(usage.prompt_tokens),
            Ok(_) => Err(Error::Tokenize("the server reports no usage; use --prompts".into())),
            Err(CallEnd::Failed(Failure { code, message })) => {
                Err(Error::Tokenize(format!("{code}: {message}")))
            }
            Err(_) => Err(Error::Tokenize("the request was cancelled".into())),
        }
    }

    /// Sends a request and reads its response.
    pub(super) async fn call(
        &self,
        request: &LoadRequest,
        deadline: Deadline,
        live: &LiveCounters,
        response: &mut ReceivedResponse,
    ) -> Result<Completion, CallEnd> {
        tokio::select! {
            // What has arrived is read even if the deadline has passed in the meantime.
            biased;
            end = self.stream(request, live, response) => end,
            () = deadline.passed() => Err(Failure {
                code: "DEADLINE_EXCEEDED".into(),
                message: "the deadline has passed while waiting for the server".into(),
            }
            .into()),
        }
    }

    async fn stream(
        &self,
        request: &LoadRequest,
        live: &LiveCounters,
        response: &mut ReceivedResponse,
    ) -> Result<Completion, CallEnd> {
        let reply = self.client.request(self.authorize(self.message(request)?)).await;
        let reply = reply.map_err(|error| connection_failed(&error))?;
        let status = reply.status();
        if status != StatusCode::OK {
            let body = body(reply.into_body()).await.unwrap_or_default();
            let code = format!("HTTP {}", status.as_u16()).into();
            return Err(Failure { code, message: error_message(&body) }.into());
        }
        let kind = reply.headers().get(header::CONTENT_TYPE).map(|value| value.as_bytes());
        if !kind.is_some_and(|kind| kind.starts_with(b"text/event-stream")) {
            let kind = String::from_utf8_lossy(kind.unwrap_or(b"none")).into_owned();
            let message = format!("the response is no stream of events (content-type: {kind})");
            return Err(Failure::invalid_response(message).into());
        }
        response.accepted = Some(Accepted::default());
        read(reply.into_body(), live, response).await
    }

    fn message(&self, request: &LoadRequest) -> Result<Request<Full<Bytes>>, Failure> {
        let path = if self.chat { "/v1/chat/completions" } else { "/v1/completions" };
        let body = Body::new(request, self.chat);
        let json = serde_json::to_vec(&body);
        let json = json.map_err(|error| Failure::invalid_response(error.to_string()))?;
        let message = Request::builder()
            .method(Method::POST)
            .uri(format!("{}{path}", self.base))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(json));
        message.map_err(|error| Failure::invalid_response(error.to_string()))
    }

    async fn fetch(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), String> {
        let response = self.client.request(self.authorize(request)).await;
        let response = response.map_err(|error| root_cause(&error))?;
        Ok((response.status(), body(response.into_body()).await?))
    }
}

/// Reads the events of a response up to the last one.
async fn read(
    mut body: Incoming,
    live: &LiveCounters,
    response: &mut ReceivedResponse,
) -> Result<Completion, CallEnd> {
    let mut events = EventSplitter::default();
    let (mut finish, mut usage) = (None, None);
    while !response.is_cancelled() {
        let Some(data) = events.next() else {
            match body.frame().await {
                Some(Ok(frame)) => {
                    let piece = frame.into_data().unwrap_or_default();
                    events.add(&piece).map_err(|TooLong(max)| {
                        Failure::invalid_response(format!("an event is longer than {max} bytes"))
                    })?;
                    continue;
                }
                Some(Err(error)) => return Err(connection_failed(&error).into()),
                None => break,
            }
        };
        if data.as_ref() == b"[DONE]" {
            // The connection is used again if its last bytes are read.
            let _ = timeout(DRAIN_TIMEOUT, async { while body.frame().await.is_some() {} }).await;
            break;
        }
        let chunk: Chunk = serde_json::from_slice(&data)
            .map_err(|error| Failure::invalid_response(format!("an event is no JSON: {error}")))?;
        if let Some(error) = chunk.error {
            return Err(
                Failure::invalid_response(error_message(error.to_string().as_bytes())).into()
            );
        }
        if let Some(accepted) =
            response.accepted.as_mut().filter(|accepted| accepted.model.is_empty())
        {
            (accepted.model, accepted.request_id) = (quoted(&chunk.model), quoted(&chunk.id));
        }
        let (texts, reason, reported) = chunk.into_parts();
        for text in texts {
            response.add(1, &text, live);
        }
        if let Some(reason) = reason {
            response.finished();
            finish = Some(finish_of(&reason)?);
        }
        usage = reported.or(usage);
    }
    if response.is_cancelled() {
        return Err(CallEnd::Cancelled);
    }
    let finish = finish.ok_or_else(|| Failure {
        code: "UNAVAILABLE".into(),
        message: "the stream ended before the response was complete".into(),
    })?;
    let usage = usage.map(Into::into);
    Ok(Completion { finish, usage, timings: None })
}

fn connection_failed(error: &(dyn std::error::Error + 'static)) -> Failure {
    let message = format!("the connection failed: {}", root_cause(error));
    Failure { code: "UNAVAILABLE".into(), message }
}

async fn body(body: Incoming) -> Result<Bytes, String> {
    let read = timeout(TIMEOUT, Limited::new(body, MAX_BODY).collect()).await;
    let read = read.map_err(|_| format!("the rest took longer than {TIMEOUT:?}"))?;
    Ok(read.map_err(|error| error.to_string())?.to_bytes())
}

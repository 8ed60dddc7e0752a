//! Calls to a Stoker cluster over gRPC.

use std::{error::Error as _, time::Duration};

use stoker_proto::v1::{
    FinishReason, GenerateRequest, Sampling, Stopping, TokenizeRequest, generate_request::Input,
    generate_response::Event, tokenize_request,
};
use stoker_shared::{
    client::{Address, CallError, Client},
    deadline::Deadline,
    error::{code_name, root_cause},
};
use tokio::time::timeout;
use tonic_health::pb::HealthCheckRequest;

use crate::{
    error::Error,
    targets::{
        outcome::{Accepted, CallEnd, Completion, Failure, Finish, LiveCounters, ReceivedResponse},
        request::LoadRequest,
    },
};

/// Returns the request as a message.
pub fn message(request: &LoadRequest) -> GenerateRequest {
    GenerateRequest {
        model: request.model.clone(),
        input: Some(Input::Prompt(request.text())),
        sampling: Some(Sampling {
            temperature: request.temperature,
            seed: Some(request.seed),
            ..Sampling::default()
        }),
        stopping: Some(Stopping {
            max_tokens: request.max_tokens,
            ignore_eos: request.ignore_eos,
            ..Stopping::default()
        }),
        ..GenerateRequest::default()
    }
}

/// Time limit of the call that checks the protocol.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Fails unless the server speaks gRPC, whatever it responds.
pub(super) async fn check(client: &Client, address: &Address) -> Result<(), Error> {
    let reply = timeout(TIMEOUT, client.health().check(HealthCheckRequest::default())).await;
    let why = match reply {
        Err(_) => format!("no response within {TIMEOUT:?}"),
        Ok(Err(status)) => match status.source() {
            // Made by the transport: the server has sent no status.
            Some(cause) => root_cause(cause),
            // HTTP/2 is spoken by other servers as well.
            None if status.message().contains("grpc-status header missing") => {
                status.message().to_owned()
            }
            None => return Ok(()),
        },
        Ok(Ok(_)) => return Ok(()),
    };
    Err(Error::Failed(format!(
        "no gRPC server at {address}: {why}; is it one with OpenAI's HTTP API? Then use --target openai"
    )))
}

/// Returns the number of tokens of a prompt.
pub(super) async fn prompt_tokens(client: &Client, model: &str, text: &str) -> Result<u32, Error> {
    let request = TokenizeRequest {
        model: model.to_owned(),
        input: Some(tokenize_request::Input::Text(text.to_owned())),
        ..TokenizeRequest::default()
    };
    let response = client.control().tokenize(request).await;
    let response =
        response.map_err(|status| Error::Tokenize(CallError::from(status).to_string()))?;
    Ok(u32::try_from(response.get_ref().ids.len()).unwrap_or(u32::MAX))
}

/// Sends a request and reads its response.
pub(super) async fn call(
    client: &Client,
    request: &LoadRequest,
    deadline: Deadline,
    live: &LiveCounters,
    response: &mut ReceivedResponse,
) -> Result<Completion, CallEnd> {
    let mut events = client.generate(message(request), deadline).await?;
    let mut completion = None;
    let mut attempt = None;
    while !response.is_cancelled() {
        let Some(event) = events.next().await? else {
            // Always set: `next` returns `None` only after the last event.
            return completion.ok_or_else(|| Failure::invalid_response("no last event").into());
        };
        let first_of_attempt =
            attempt.replace(event.attempt).is_some_and(|last| last != event.attempt);
        if first_of_attempt && response.first_token.is_some() {
            response.resumed();
        }
        match event.kind {
            // Sent again if another worker took over before the first token.
            Event::Accepted(accepted) => {
                let stoker_proto::v1::Accepted { request_id, model, worker, .. } = accepted;
                response.accepted = Some(Accepted { request_id, model, worker });
            }
            Event::Token(delta) => {
                let tokens = u32::try_from(delta.ids.len()).unwrap_or(u32::MAX);
                response.ids.extend_from_slice(&delta.ids);
                response.add(tokens, &delta.text, live);
            }
            Event::Finished(finished) => {
                response.finished();
                let finish = match finished.reason() {
                    FinishReason::Stop => Finish::Stop,
                    FinishReason::Length => Finish::Length,
                    other => {
                        let message = format!("the response ended with {}", other.as_str_name());
                        return Err(Failure::invalid_response(message).into());
                    }
                };
                let usage = finished.usage;
                completion = Some(Completion { finish, usage, timings: finished.timings });
            }
            Event::Prompt(_) | Event::Preempted(_) => {}
        }
    }
    Err(CallEnd::Cancelled)
}

impl From<CallError> for CallEnd {
    fn from(error: CallError) -> Self {
        let code = code_name(error.code()).into();
        Self::Failed(Failure { code, message: error.message().to_owned() })
    }
}

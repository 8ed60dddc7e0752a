//! Helpers for the tests of the layers: a request, events, and a service that records its calls.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    future::{Ready, ready},
    mem,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use futures::{StreamExt, stream};
use stoker_proto::v1::{
    Accepted, FinishReason, Finished, GenerateRequest, GenerateResponse, TokenDelta, Usage,
    generate_request::Input, generate_response::Event,
};
use stoker_shared::{ServiceError, deadline::Deadline};
use tokio::time::Instant;
use tower::Service;

use crate::call::{Call, EventStream};

/// Returns a valid request.
pub(crate) fn request() -> GenerateRequest {
    GenerateRequest { input: Some(Input::Prompt("once upon a time".into())), ..Default::default() }
}

/// Returns a call with that request and without a deadline.
pub(crate) fn call() -> Call {
    Call::new(request(), Deadline::NEVER, Instant::now())
}

/// Returns an event of the first attempt.
pub(crate) fn event(event: Event) -> GenerateResponse {
    GenerateResponse { event: Some(event), attempt: 1, ..Default::default() }
}

/// Returns the first event of a stream.
pub(crate) fn accepted(worker: &str, prompt_tokens: u32) -> GenerateResponse {
    event(Event::Accepted(Accepted { worker: worker.into(), prompt_tokens, ..Default::default() }))
}

/// Returns an event with one token.
pub(crate) fn token() -> GenerateResponse {
    event(Event::Token(TokenDelta { ids: vec![7], text: "x".into(), ..Default::default() }))
}

/// Returns the last event of a stream.
pub(crate) fn finished() -> GenerateResponse {
    event(Event::Finished(Finished {
        reason: FinishReason::Stop.into(),
        usage: Some(Usage::default()),
        ..Default::default()
    }))
}

/// Returns a stream of `items`.
pub(crate) fn events(
    items: impl IntoIterator<Item = Result<GenerateResponse, ServiceError>>,
) -> EventStream {
    let items: Vec<_> = items.into_iter().collect();
    stream::iter(items).boxed()
}

/// Returns an empty stream for every call, and records the call.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<Vec<Call>>>);

impl Recorder {
    pub(crate) fn take(&self) -> Vec<Call> {
        mem::take(&mut self.0.lock().unwrap())
    }
}

impl Service<Call> for Recorder {
    type Response = EventStream;
    type Error = ServiceError;
    type Future = Ready<Result<EventStream, ServiceError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ServiceError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        self.0.lock().unwrap().push(call);
        ready(Ok(events([])))
    }
}

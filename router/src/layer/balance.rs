//! Chooses a worker, and counts what it still has to do.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures::{FutureExt, future::BoxFuture};
use stoker_proto::v1::{
    GenerateRequest, GenerateResponse, generate_request::Input, generate_response::Event,
};
use stoker_shared::{ServiceError, discovery::WorkerId};
use tower::{Service, ServiceExt};

use crate::{
    call::{Call, EventStream, Observe, observe},
    endpoint::Dispatch,
    pool::{
        Model, Pool,
        health::Pass,
        worker::{Reservation, Worker},
    },
};

/// Tokens to expect from a request that does not limit them.
const USUAL_ANSWER: u64 = 256;

/// Others may take a worker's last probe between choice and entry, so often; then there is nobody else.
const CHOICES: usize = 3;

/// Sends each call to the better of two workers drawn at random.
#[derive(Debug, Clone)]
pub(crate) struct Balance<S> {
    endpoint: S,
    pool: Pool,
}

impl<S> Balance<S> {
    pub(crate) fn new(endpoint: S, pool: Pool) -> Self {
        Self { endpoint, pool }
    }
}

impl<S> Service<Call> for Balance<S>
where
    S: Service<Dispatch, Response = EventStream, Error = ServiceError, Future: Send>,
    S: Clone + Send + 'static,
{
    type Response = EventStream;
    type Error = ServiceError;
    type Future = BoxFuture<'static, Result<EventStream, ServiceError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ServiceError>> {
        // Which endpoint has to be ready is known only once the call is.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        // Workers may have come and gone since the model was looked up: look again, at every attempt.
        let fleet = self.pool.fleet();
        let reserved = fleet.model(&call.request.model).and_then(|model| {
            call.tried.with(|tried| {
                let digest = call.only_digest.as_deref();
                let (worker, pass) = enter(model, tried, digest).ok_or_else(|| fleet.nobody())?;
                tried.push(worker.id.clone());
                call.chosen.set(worker);
                // Reserved before dispatch, so that calls that come at once do not all see an idle worker.
                let (prompt, answer) = estimate(&call.request, worker.info.context_length);
                let choices = choices(&call.request);
                let reservation = Reservation::new(worker, prompt, answer, choices);
                Ok((Arc::clone(worker), pass, reservation))
            })
        });
        let (worker, pass, reservation) = match reserved {
            Ok(reserved) => reserved,
            Err(error) => return futures::future::err(error).boxed(),
        };
        let endpoint = self.endpoint.clone();
        async move {
            let stream = endpoint.oneshot(Dispatch { call, worker, pass: Some(pass) }).await?;
            Ok(observe(stream, reservation))
        }
        .boxed()
    }
}

/// Chooses a worker, and takes its leave to be sent a request.
fn enter<'a>(
    model: &'a Model,
    tried: &[WorkerId],
    digest: Option<&str>,
) -> Option<(&'a Arc<Worker>, Pass)> {
    let mut worker = model.choose(tried, digest)?;
    for _ in 0..CHOICES {
        if let Some(pass) = worker.health.enter() {
            return Some((worker, pass));
        }
        worker = model.choose(tried, digest)?;
    }
    let pass = worker.health.enter_anyway();
    Some((worker, pass))
}

/// Continuations to expect.
pub(super) fn choices(request: &GenerateRequest) -> u32 {
    request.sampling.as_ref().and_then(|s| s.num_sequences).unwrap_or(1)
}

/// Tokens of the prompt and of each continuation, as far as somebody without a tokenizer can tell.
pub(super) fn estimate(request: &GenerateRequest, context_length: u32) -> (u64, u64) {
    let of_text = |bytes: usize| (bytes as u64).div_ceil(4);
    let prompt = match &request.input {
        Some(Input::Prompt(text)) => of_text(text.len()),
        Some(Input::TokenIds(tokens)) => tokens.ids.len() as u64,
        Some(Input::Chat(chat)) => of_text(chat.messages.iter().map(|m| m.content.len()).sum()),
        None => 0,
    };
    let longest = request.stopping.as_ref().and_then(|s| s.max_tokens);
    let mut answer = longest.map_or(USUAL_ANSWER, u64::from);
    if context_length > 0 {
        // Many ask for far more than there is room for.
        answer = answer.min(context_length.into());
    }
    (prompt, answer)
}

impl Observe for Reservation {
    fn event(&mut self, event: &mut GenerateResponse) {
        match &event.event {
            Some(Event::Accepted(accepted)) => self.prompt_is(accepted.prompt_tokens.into()),
            Some(Event::Token(delta)) => self.made(event.choice, delta.ids.len() as u64),
            Some(Event::Finished(_)) => self.finished(event.choice),
            Some(Event::Prompt(_)) | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use stoker_proto::v1::{Sampling, Stopping, TokenIds};

    use super::*;
    use crate::layer::support::request;

    #[test]
    fn estimates_prompt_and_answer() {
        assert_eq!(estimate(&request(), 0), (4, USUAL_ANSWER));
        let exact = GenerateRequest {
            input: Some(Input::TokenIds(TokenIds { ids: vec![1; 9] })),
            stopping: Some(Stopping { max_tokens: Some(100), ..Default::default() }),
            sampling: Some(Sampling { num_sequences: Some(3), ..Default::default() }),
            ..Default::default()
        };
        assert_eq!((estimate(&exact, 0), choices(&exact)), ((9, 100), 3));
        assert_eq!(estimate(&exact, 50), (9, 50), "no more than the context holds");
        assert_eq!(choices(&request()), 1);
    }
}

//! Another worker, whenever one is lost: before the first token by asking again, after it by going on exactly
//! where the answer stood.

mod answer;
mod attempts;
mod budget;
mod config;
mod hedge;
mod lost_time;
mod quarantine;
mod resume_state;
mod watchdog;

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::{FutureExt, Stream, StreamExt, future::BoxFuture};
use stoker_proto::v1::GenerateResponse;
use stoker_shared::{ServiceError, memory};
use tower::Service;

use crate::{
    call::{Call, EventStream, Generate},
    metrics::Metrics,
    pool::Pool,
};
use answer::Answer;
use attempts::Attempts;
use budget::Budget;
pub use config::ResumeConfig;
use quarantine::Quarantine;
use watchdog::Patience;

/// What a stream is made of.
type Item = Result<GenerateResponse, ServiceError>;

/// What all calls share.
#[derive(Debug)]
pub(crate) struct Shared {
    config: ResumeConfig,
    patience: Patience,
    pool: Pool,
    budget: Budget,
    /// For the tokens of started answers.
    memory: memory::Budget,
    /// Content that makes engines panic.
    quarantine: Quarantine,
    metrics: Metrics,
}

impl Shared {
    pub(crate) fn new(config: &ResumeConfig, pool: &Pool, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            config: config.clone(),
            patience: Patience { stalled: config.stall_patience(), moving: config.token_timeout },
            pool: pool.clone(),
            budget: Budget::default(),
            memory: memory::Budget::new(config.resume_memory.as_u64()),
            quarantine: Quarantine::default(),
            metrics: metrics.clone(),
        })
    }
}

/// Keeps an accepted call going, whatever becomes of its workers.
#[derive(Debug, Clone)]
pub(crate) struct Resume<S> {
    next: S,
    shared: Arc<Shared>,
}

impl<S> Resume<S> {
    pub(crate) fn new(next: S, shared: Arc<Shared>) -> Self {
        Self { next, shared }
    }
}

impl<S: Generate> Service<Call> for Resume<S> {
    type Response = EventStream;
    type Error = ServiceError;
    type Future = BoxFuture<'static, Result<EventStream, ServiceError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ServiceError>> {
        // Readiness counts once, and there may be several calls: each asks for its own.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        if let Err(error) = self.shared.quarantine.check(&call.request) {
            return futures::future::err(error).boxed();
        }
        self.shared.budget.deposit();
        let (next, shared) = (self.next.clone(), Arc::clone(&self.shared));
        let attempts = Attempts { next, shared, call, max_tokens: 0 };
        async move {
            let first = attempts.first().await?;
            let answer = Box::new(Answer::new(attempts, first));
            Ok(Events::Coming(answer).boxed())
        }
        .boxed()
    }
}

/// An answer that somebody goes on with, or why nobody does.
type Resumed<S> = (Box<Answer<S>>, Result<(), ServiceError>);

/// The events for the client.
enum Events<S> {
    /// A worker sends them. They are read where they lie: most of what is here is looked at once a stream.
    Coming(Box<Answer<S>>),
    /// Another worker is looked for.
    Resuming(BoxFuture<'static, Resumed<S>>),
    Over,
}

impl<S: Generate> Stream for Events<S> {
    type Item = Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        loop {
            match &mut *self {
                Self::Over => return Poll::Ready(None),
                Self::Coming(answer) => match ready!(answer.poll_event(cx)) {
                    Some(Ok(mut event)) => {
                        if answer.keep(&mut event) {
                            return Poll::Ready(Some(Ok(event)));
                        }
                    }
                    // After the last event the client has all of it, whatever becomes of the worker.
                    Some(Err(error)) if !answer.complete => {
                        if let Self::Coming(mut answer) = mem::replace(&mut *self, Self::Over) {
                            let goes_on = async move {
                                let result = answer.resume(error).await;
                                (answer, result)
                            };
                            *self = Self::Resuming(goes_on.boxed());
                        }
                    }
                    Some(Err(_)) | None => *self = Self::Over,
                },
                Self::Resuming(goes_on) => {
                    let (answer, result) = ready!(goes_on.poll_unpin(cx));
                    match result {
                        Ok(()) => *self = Self::Coming(answer),
                        Err(error) => {
                            *self = Self::Over;
                            return Poll::Ready(Some(Err(error)));
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;

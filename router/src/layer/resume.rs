//! Failover to another worker: a retry before the first token; after it, the response resumes
//! exactly where it was interrupted.

mod attempts;
mod config;
mod hedge;
mod lost_time;
mod quarantine;
mod response_stream;
mod resume_state;
mod retry_budget;
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
use attempts::RetryableCall;
pub use config::ResumeConfig;
use quarantine::Quarantine;
use response_stream::ResponseStream;
use retry_budget::RetryBudget;
use watchdog::StallTimeouts;

/// Item of a response stream.
type Item = Result<GenerateResponse, ServiceError>;

/// State that all calls share.
#[derive(Debug)]
pub(crate) struct ResumeContext {
    config: ResumeConfig,
    stall_timeouts: StallTimeouts,
    pool: Pool,
    retry_budget: RetryBudget,
    /// Budget for the tokens of running responses.
    memory: memory::MemoryBudget,
    /// Requests that made engines panic.
    quarantine: Quarantine,
    metrics: Metrics,
}

impl ResumeContext {
    pub(crate) fn new(config: &ResumeConfig, pool: &Pool, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            config: config.clone(),
            stall_timeouts: StallTimeouts {
                stalled_worker: config.stall_detection_time(),
                token: config.token_timeout,
            },
            pool: pool.clone(),
            retry_budget: RetryBudget::default(),
            memory: memory::MemoryBudget::new(config.resume_memory.as_u64()),
            quarantine: Quarantine::default(),
            metrics: metrics.clone(),
        })
    }
}

/// Retries, resumes and hedges calls, so that an accepted call survives the loss of its worker.
#[derive(Debug, Clone)]
pub(crate) struct Resume<S> {
    next: S,
    context: Arc<ResumeContext>,
}

impl<S> Resume<S> {
    pub(crate) fn new(next: S, context: Arc<ResumeContext>) -> Self {
        Self { next, context }
    }
}

impl<S: Generate> Service<Call> for Resume<S> {
    type Response = EventStream;
    type Error = ServiceError;
    type Future = BoxFuture<'static, Result<EventStream, ServiceError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ServiceError>> {
        // Readiness covers one call of `next`, and there may be several attempts: each polls its
        // own clone.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        if let Err(error) = self.context.quarantine.check(&call.request) {
            return futures::future::err(error).boxed();
        }
        self.context.retry_budget.deposit();
        let (next, context) = (self.next.clone(), Arc::clone(&self.context));
        let retryable = RetryableCall { next, context, call, max_tokens: 0 };
        async move {
            let first = retryable.first_accepted().await?;
            let response = Box::new(ResponseStream::new(retryable, first));
            Ok(ClientStream::Streaming(response).boxed())
        }
        .boxed()
    }
}

/// A response after an attempt to resume it, and the error if that failed.
type ResumeResult<S> = (Box<ResponseStream<S>>, Result<(), ServiceError>);

/// Events for the client.
enum ClientStream<S> {
    /// A worker is streaming. Boxed, since most of its state is rarely accessed.
    Streaming(Box<ResponseStream<S>>),
    /// The response is moving to another worker.
    Resuming(BoxFuture<'static, ResumeResult<S>>),
    Done,
}

impl<S: Generate> Stream for ClientStream<S> {
    type Item = Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        loop {
            match &mut *self {
                Self::Done => return Poll::Ready(None),
                Self::Streaming(response) => match ready!(response.poll_event(cx)) {
                    Some(Ok(mut event)) => {
                        if response.record(&mut event) {
                            return Poll::Ready(Some(Ok(event)));
                        }
                    }
                    // After the last event the response is complete, so an error does not matter.
                    Some(Err(error)) if !response.complete => {
                        if let Self::Streaming(mut response) = mem::replace(&mut *self, Self::Done)
                        {
                            let resuming = async move {
                                let result = response.resume(error).await;
                                (response, result)
                            };
                            *self = Self::Resuming(resuming.boxed());
                        }
                    }
                    Some(Err(_)) | None => *self = Self::Done,
                },
                Self::Resuming(resuming) => {
                    let (response, result) = ready!(resuming.poll_unpin(cx));
                    match result {
                        Ok(()) => *self = Self::Streaming(response),
                        Err(error) => {
                            *self = Self::Done;
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

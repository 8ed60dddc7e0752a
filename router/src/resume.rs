//! Failover to another worker: a retry before the first token; after it, the response resumes
//! exactly where it was interrupted.
//!
//! `attempts` calls workers until one accepts, `hedge` calls a second one beside a slow one, and
//! `watchdog` gives up a silent one. `response_stream` hands events to the client, `resume_state`
//! keeps what another worker needs to continue, `retry_budget` and `quarantine` limit both.

mod attempts;
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

use crate::{
    call::{Call, EventStream, Generate},
    config::ResumeConfig,
    metrics::Metrics,
    pool::Pool,
};
use attempts::RetryableCall;
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

/// Sends `call` to workers by `next` until one accepts it. The returned stream resumes the response
/// on another worker if its worker is lost.
pub(crate) fn respond<S: Generate>(
    next: S,
    context: Arc<ResumeContext>,
    call: Call,
) -> BoxFuture<'static, Result<EventStream, ServiceError>> {
    if let Err(error) = context.quarantine.check(&call.request) {
        return futures::future::err(error).boxed();
    }
    context.retry_budget.deposit();
    let retryable = RetryableCall { next, context, call, max_tokens: 0 };
    async move {
        let first = retryable.first_accepted().await?;
        let response = Box::new(ResponseStream::new(retryable, first));
        Ok(ClientStream::Streaming(response).boxed())
    }
    .boxed()
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

//! The client's deadline, enforced until the last event.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures::{FutureExt, Stream, StreamExt, future::BoxFuture};
use stoker_proto::v1::GenerateResponse;
use stoker_shared::{ServiceError, deadline::Deadline};
use tower::Service;

use crate::call::{Call, EventStream, Generate};

/// Ends a call with DEADLINE_EXCEEDED when its deadline passes, also in the middle of the stream.
#[derive(Debug, Clone)]
pub(crate) struct Deadlines<S>(S);

impl<S> Deadlines<S> {
    pub(crate) fn new(next: S) -> Self {
        Self(next)
    }
}

impl<S: Generate> Service<Call> for Deadlines<S> {
    type Response = EventStream;
    type Error = ServiceError;
    type Future = BoxFuture<'static, Result<EventStream, ServiceError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ServiceError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let deadline = call.deadline;
        if deadline.is_over() {
            return futures::future::err(exceeded("on arrival")).boxed();
        }
        let work = self.0.call(call);
        async move {
            let stream = tokio::select! {
                // The work first: the error of a layer below names the stage more precisely.
                biased;
                done = work => done?,
                () = deadline.passed() => return Err(exceeded("before a worker accepted")),
            };
            Ok(bounded(stream, deadline))
        }
        .boxed()
    }
}

fn exceeded(stage: &str) -> ServiceError {
    ServiceError::DeadlineExceeded { stage: stage.into() }
}

fn bounded(stream: EventStream, deadline: Deadline) -> EventStream {
    if deadline == Deadline::NEVER {
        return stream;
    }
    Box::pin(Bounded {
        stream: Some(stream),
        // One timer per request, not one per token.
        passed: Box::pin(async move { deadline.passed().await }),
    })
}

/// A stream with a deadline. Drops the inner stream with the error, so that the worker stops
/// immediately.
struct Bounded {
    stream: Option<EventStream>,
    passed: BoxFuture<'static, ()>,
}

impl Stream for Bounded {
    type Item = Result<GenerateResponse, ServiceError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(stream) = &mut this.stream else {
            return Poll::Ready(None);
        };
        // The timer first: a stream that is always ready must not outlast it.
        let item = if this.passed.poll_unpin(cx).is_ready() {
            Poll::Ready(Some(Err(exceeded("in the middle of the stream"))))
        } else {
            stream.poll_next_unpin(cx)
        };
        if !matches!(item, Poll::Pending | Poll::Ready(Some(Ok(_)))) {
            this.stream = None;
        }
        item
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::{sync::Arc, time::Duration};

    use futures::stream;
    use stoker_shared::guarded::Guarded;
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::tests::support::{Recorder, call, token};

    fn within(left: Duration) -> Call {
        Call { deadline: Deadline::after(left), ..call() }
    }

    #[tokio::test(start_paused = true)]
    async fn ends_a_running_stream_and_drops_it() {
        let held = Arc::new(());
        let guard = Arc::clone(&held);
        let below = service_fn(move |_: Call| {
            let tokens = stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_millis(400)).await;
                Some((Ok(token()), ()))
            });
            let stream: EventStream = Box::pin(Guarded::new(tokens, Arc::clone(&guard)));
            async { Ok::<_, ServiceError>(stream) }
        });
        let call = within(Duration::from_secs(1));
        let mut stream = Deadlines::new(below).oneshot(call).await.unwrap();
        assert!(stream.next().await.unwrap().is_ok());
        assert!(stream.next().await.unwrap().is_ok());
        let error = stream.next().await.unwrap().unwrap_err();
        assert_eq!(error, exceeded("in the middle of the stream"));
        assert_eq!(Arc::strong_count(&held), 1, "the stream below is dropped");
        assert!(stream.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_always_ready_ends_at_its_deadline() {
        let below = service_fn(|_: Call| async {
            Ok::<_, ServiceError>(stream::repeat_with(|| Ok(token())).boxed())
        });
        let call = within(Duration::from_secs(1));
        let mut stream = Deadlines::new(below).oneshot(call).await.unwrap();
        assert!(stream.next().await.unwrap().is_ok());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(stream.next().await.unwrap().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_past_its_deadline_is_not_passed_on() {
        let below = Recorder::default();
        let error = Deadlines::new(below.clone()).oneshot(within(Duration::ZERO)).await.err();
        assert_eq!(error, Some(exceeded("on arrival")));
        assert!(below.take().is_empty());
    }
}

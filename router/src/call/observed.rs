//! A stream with an observer of its events, its error and its end.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{Stream, StreamExt};
use stoker_proto::v1::GenerateResponse;
use stoker_shared::ServiceError;

use super::EventStream;

/// Observes a stream. Dropped as soon as the stream has ended or failed, or is dropped, which
/// releases what the observer holds (a permit, a reservation, a drain guard).
pub(crate) trait Observe: Send + Unpin + 'static {
    /// Handles the next event before it is passed up the stack.
    fn event(&mut self, _event: &mut GenerateResponse) {}
    /// Handles the error that ends the stream.
    fn failed(&mut self, _error: &ServiceError) {}
    /// Handles the end of a stream without an error.
    fn ended(&mut self) {}
}

/// Attaches `observer` to `stream`.
pub(crate) fn observe(stream: EventStream, observer: impl Observe) -> EventStream {
    Box::pin(Observed(Some((stream, observer))))
}

/// Empty once the stream is over.
struct Observed<O>(Option<(EventStream, O)>);

impl<O: Observe> Stream for Observed<O> {
    type Item = Result<GenerateResponse, ServiceError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some((stream, observer)) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let mut item = ready!(stream.poll_next_unpin(cx));
        match &mut item {
            Some(Ok(event)) => {
                observer.event(event);
                return Poll::Ready(item);
            }
            Some(Err(error)) => observer.failed(error),
            None => observer.ended(),
        }
        self.0 = None;
        Poll::Ready(item)
    }
}

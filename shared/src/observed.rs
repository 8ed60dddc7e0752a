//! The stream of a response, with an observer of its events, its error and its end.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{Stream, StreamExt};
use stoker_proto::v1::GenerateResponse;

use crate::ServiceError;

/// Observes a stream. Dropped as soon as the stream has ended or failed, or is dropped, which
/// releases what the observer holds (a permit, a reservation, a drain guard).
pub trait Observe: Send + Unpin + 'static {
    /// Handles the next event before it is passed up the stack.
    fn event(&mut self, _event: &mut GenerateResponse) {}
    /// Handles the error that ends the stream.
    fn failed(&mut self, _error: &ServiceError) {}
    /// Handles the end of a stream without an error.
    fn ended(&mut self) {}
}

/// A stream of response events with an observer.
pub struct Observed<S, O>(Option<(S, O)>);

impl<S, O> Observed<S, O> {
    /// Attaches `observer` to `stream`.
    pub fn new(stream: S, observer: O) -> Self {
        Self(Some((stream, observer)))
    }
}

impl<S, O: Observe> Stream for Observed<S, O>
where
    S: Stream<Item = Result<GenerateResponse, ServiceError>> + Unpin,
{
    type Item = S::Item;

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
        // What the observer holds must not wait until a finished stream is dropped.
        self.0 = None;
        Poll::Ready(item)
    }
}

//! A stream that somebody follows, from its first event to its end.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{Stream, StreamExt};
use stoker_proto::v1::GenerateResponse;
use stoker_shared::ServiceError;

use super::EventStream;

/// Follows a stream. Dropped as soon as the stream has ended or failed, or is dropped: what it holds
/// (a permit, a reservation, a place in a drain) is free from there on.
pub(crate) trait Observe: Send + Unpin + 'static {
    /// The next event, before it goes on to the client.
    fn event(&mut self, _event: &mut GenerateResponse) {}
    /// The stream failed.
    fn failed(&mut self, _error: &ServiceError) {}
    /// The stream ended well.
    fn ended(&mut self) {}
}

/// Lets `observer` follow `stream`.
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

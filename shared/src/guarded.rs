//! A stream that holds a guard until it ends: a load reservation, a permit, a drain guard.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::Stream;
use pin_project_lite::pin_project;

pin_project! {
    /// Yields the items of `stream`. `guard` is dropped when the stream ends or is dropped.
    pub struct Guarded<S, G> {
        #[pin]
        stream: S,
        guard: Option<G>,
    }
}

impl<S, G> Guarded<S, G> {
    /// Holds `guard` until `stream` has ended or is dropped.
    pub fn new(stream: S, guard: G) -> Self {
        Self { stream, guard: Some(guard) }
    }
}

impl<S: Stream, G> Stream for Guarded<S, G> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let this = self.project();
        let item = ready!(this.stream.poll_next(cx));
        if item.is_none() {
            // A finished stream may live on for a while; its guard must not.
            this.guard.take();
        }
        Poll::Ready(item)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::{StreamExt, stream};

    use super::*;

    #[tokio::test]
    async fn the_guard_is_released_at_the_end_and_on_drop() {
        let guard = Arc::new(());
        let mut complete = Guarded::new(stream::iter([1, 2]), Arc::clone(&guard));
        assert_eq!(complete.next().await, Some(1));
        assert_eq!(Arc::strong_count(&guard), 2);
        assert_eq!(complete.next().await, Some(2));
        assert_eq!(complete.next().await, None);
        assert_eq!(Arc::strong_count(&guard), 1, "released before the stream is dropped");

        let dropped = Guarded::new(stream::iter([1, 2]), Arc::clone(&guard));
        drop(dropped);
        assert_eq!(Arc::strong_count(&guard), 1);
    }
}

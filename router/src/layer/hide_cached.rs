//! Hides from clients how much of a prompt was in the prefix cache (`--hide-cached-tokens`).

use std::task::{Context, Poll};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use stoker_proto::v1::{GenerateResponse, generate_response::Event};
use stoker_shared::{
    ServiceError,
    observed::{Observe, Observed},
};
use tower::Service;

use crate::call::{Call, EventStream, Generate};

/// Sets `cached_prompt_tokens` to 0 for clients if `enabled`.
#[derive(Debug, Clone)]
pub(crate) struct HideCached<S> {
    next: S,
    enabled: bool,
}

impl<S> HideCached<S> {
    pub(crate) fn new(next: S, enabled: bool) -> Self {
        Self { next, enabled }
    }
}

impl<S: Generate> Service<Call> for HideCached<S> {
    type Response = EventStream;
    type Error = ServiceError;
    type Future = BoxFuture<'static, Result<EventStream, ServiceError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ServiceError>> {
        self.next.poll_ready(cx)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let work = self.next.call(call);
        if !self.enabled {
            return work.boxed();
        }
        async move { Ok(Observed::new(work.await?, Hide).boxed()) }.boxed()
    }
}

struct Hide;

impl Observe for Hide {
    fn event(&mut self, event: &mut GenerateResponse) {
        if let Some(Event::Finished(finished)) = &mut event.event
            && let Some(usage) = &mut finished.usage
        {
            usage.cached_prompt_tokens = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use futures::TryStreamExt;
    use stoker_proto::v1::{Finished, Usage};
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::tests::support::{accepted, call, event, events, token};

    #[tokio::test]
    async fn hides_only_the_cached_tokens_and_only_if_enabled() {
        let usage = Usage { prompt_tokens: 9, completion_tokens: 1, cached_prompt_tokens: 8 };
        let all = move || {
            let end = Finished { usage: Some(usage), ..Finished::default() };
            // Of several choices, only the last one to finish has a usage.
            let other = event(Event::Finished(Finished::default()));
            [accepted("w", 9), token(), other, event(Event::Finished(end))]
        };
        for (enabled, cached_prompt_tokens) in [(false, 8), (true, 0)] {
            let below =
                service_fn(
                    move |_: Call| async move { Ok::<_, ServiceError>(events(all().map(Ok))) },
                );
            let stream = HideCached::new(below, enabled).oneshot(call()).await.unwrap();
            let seen: Vec<_> = stream.try_collect().await.unwrap();
            let mut expected = all();
            let Some(Event::Finished(end)) = &mut expected[3].event else { unreachable!() };
            end.usage = Some(Usage { cached_prompt_tokens, ..usage });
            assert_eq!(seen, expected);
        }
    }
}

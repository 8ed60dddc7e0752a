//! Refuses invalid requests and headers, and sets what the client may leave out: seed, tenant,
//! priority and the time.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::SystemTime,
};

use futures::future::{self, Either, Ready};
use stoker_proto::v1::{GenerateRequest, Routing};
use stoker_shared::{ServiceError, validate};
use tower::Service;

use crate::{
    call::{Call, EventStream, Generate},
    tenant::Priorities,
};

/// Validates requests against the limits that do not depend on the model.
#[derive(Debug, Clone)]
pub(crate) struct Validate<S> {
    next: S,
    priorities: Arc<Priorities>,
}

impl<S> Validate<S> {
    pub(crate) fn new(next: S, priorities: Arc<Priorities>) -> Self {
        Self { next, priorities }
    }
}

impl<S: Generate> Service<Call> for Validate<S> {
    type Response = EventStream;
    type Error = ServiceError;
    type Future = Either<Ready<Result<EventStream, ServiceError>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ServiceError>> {
        self.next.poll_ready(cx)
    }

    fn call(&mut self, mut call: Call) -> Self::Future {
        let checked = call.malformed.take().map_or_else(|| check(&call.request), Err);
        match checked {
            Ok(()) => {
                let sampling = call.request.sampling.get_or_insert_default();
                // Drawn once, so that all workers that may serve the request sample the same
                // tokens.
                sampling.seed.get_or_insert_with(rand::random);
                match call.account.as_ref().and_then(|account| account.policy().priority) {
                    Some(most_urgent) => Priorities::lower(most_urgent, &mut call.request),
                    None => self.priorities.limit(&call.tenant, &mut call.request),
                }
                // The tenant is part of the request to the worker, whose prefix cache separates
                // tenants.
                let tenant = call.tenant.to_string();
                // Read once: a chat template may show the time, and a response is resumed only from
                // the prompt that it began with.
                let template_time = Some(SystemTime::now().into());
                call.request.routing =
                    Some(Routing { tenant, template_time, ..Default::default() });
                Either::Right(self.next.call(call))
            }
            Err(error) => Either::Left(future::err(error)),
        }
    }
}

fn check(request: &GenerateRequest) -> Result<(), ServiceError> {
    if request.routing.is_some() {
        return Err(ServiceError::invalid(
            "routing",
            "is set; it belongs to the router, leave it out",
        ));
    }
    validate::generate(request)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use stoker_proto::v1::Sampling;
    use tower::ServiceExt;

    use super::*;
    use crate::tests::support::{Recorder, call, request};

    async fn pass(request: GenerateRequest) -> Result<Option<u64>, ServiceError> {
        let below = Recorder::default();
        let call = Call { request: request.into(), ..call() };
        drop(Validate::new(below.clone(), Arc::default()).oneshot(call).await?);
        let seen = below.take();
        Ok(seen[0].request.sampling.as_ref().and_then(|s| s.seed))
    }

    #[tokio::test]
    async fn draws_a_seed_only_when_none_is_given() {
        let drawn = [pass(request()).await, pass(request()).await];
        assert!(matches!(drawn[0], Ok(Some(_))));
        assert_ne!(drawn[0], drawn[1]);

        let sampling = Some(Sampling { seed: Some(0), ..Default::default() });
        let given = GenerateRequest { sampling, ..request() };
        assert_eq!(pass(given).await, Ok(Some(0)));
    }

    #[tokio::test]
    async fn refuses_what_only_the_router_may_set() {
        let forged = GenerateRequest { routing: Some(Routing::default()), ..request() };
        let error = pass(forged).await.unwrap_err();
        assert!(error.to_string().starts_with("routing:"), "{error}");
    }

    #[tokio::test]
    async fn refuses_what_is_out_of_range() {
        let error = pass(GenerateRequest::default()).await.unwrap_err();
        assert!(error.to_string().starts_with("input:"), "{error}");
    }
}

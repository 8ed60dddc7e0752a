//! Resolves the model of a request.

use std::task::{Context, Poll};

use futures::future::{self, Either, Ready};
use stoker_shared::ServiceError;
use tower::Service;

use crate::{
    call::{Call, EventStream, Generate},
    pool::Pool,
};

/// Sets the full name of the request's model, or refuses the request while no worker serves that
/// model.
#[derive(Debug, Clone)]
pub(crate) struct ModelLookup<S> {
    next: S,
    pool: Pool,
}

impl<S> ModelLookup<S> {
    pub(crate) fn new(next: S, pool: Pool) -> Self {
        Self { next, pool }
    }
}

impl<S: Generate> Service<Call> for ModelLookup<S> {
    type Response = EventStream;
    type Error = ServiceError;
    type Future = Either<Ready<Result<EventStream, ServiceError>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ServiceError>> {
        self.next.poll_ready(cx)
    }

    fn call(&mut self, mut call: Call) -> Self::Future {
        let fleet = self.pool.fleet();
        match fleet.permitted(&call.request.model, call.account.as_ref()) {
            Ok(model) => {
                call.span.record("model", model.name());
                // Looked up once per request, so it cannot be set already.
                let _ = call.served.set(model.name().into());
                // Workers know neither an empty name nor aliases.
                if call.request.model != model.name() {
                    call.request.model = model.name().to_owned();
                }
                Either::Right(self.next.call(call))
            }
            Err(error) => Either::Left(future::err(error)),
        }
    }
}

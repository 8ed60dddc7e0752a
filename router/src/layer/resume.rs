//! The layer of [`crate::resume`].

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use stoker_shared::ServiceError;
use tower::Service;

use crate::{
    call::{Call, EventStream, Generate},
    resume::{ResumeContext, respond},
};

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
        respond(self.next.clone(), Arc::clone(&self.context), call)
    }
}

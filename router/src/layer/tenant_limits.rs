//! Enforces the limits of tenants with API keys.

use std::task::{Context, Poll};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use stoker_proto::v1::{GenerateRequest, GenerateResponse, generate_response::Event};
use stoker_shared::{
    ServiceError,
    observed::{Observe, Observed},
};
use tower::Service;

use crate::{
    call::{Call, EventStream, Generate},
    layer::admission::tokens,
    metrics::Metrics,
    pool::Pool,
    tenant::{Account, Admitted},
};

/// Refuses what a tenant may not do, and charges it for what it uses.
#[derive(Debug, Clone)]
pub(crate) struct TenantLimits<S> {
    next: S,
    pool: Pool,
    metrics: Metrics,
}

impl<S> TenantLimits<S> {
    pub(crate) fn new(next: S, pool: Pool, metrics: Metrics) -> Self {
        Self { next, pool, metrics }
    }

    /// Checks a request of `account`, and lowers what it may leave out.
    fn admit(
        &self,
        account: &Account,
        request: &mut GenerateRequest,
    ) -> Result<Admitted, ServiceError> {
        // A model that has no worker now is the business of a layer below, after the queue.
        if let Err(error @ ServiceError::PermissionDenied(_)) =
            self.pool.fleet().permitted(&request.model, Some(account))
        {
            return Err(error);
        }
        if let Some(limit) = account.policy().max_tokens {
            let stopping = request.stopping.get_or_insert_default();
            match stopping.max_tokens {
                Some(wanted) if wanted > limit => {
                    let why = format!("is {wanted}; this tenant may request at most {limit}");
                    return Err(ServiceError::invalid("stopping.max_tokens", why));
                }
                Some(_) => {}
                None => stopping.max_tokens = Some(limit),
            }
        }
        account.admit(tokens(request), &self.metrics)
    }
}

impl<S: Generate> Service<Call> for TenantLimits<S> {
    type Response = EventStream;
    type Error = ServiceError;
    type Future = BoxFuture<'static, Result<EventStream, ServiceError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ServiceError>> {
        self.next.poll_ready(cx)
    }

    fn call(&mut self, mut call: Call) -> Self::Future {
        let Some(account) = call.account.clone() else { return self.next.call(call).boxed() };
        let admitted = match self.admit(&account, &mut call.request) {
            Ok(admitted) => admitted,
            Err(error) => return std::future::ready(Err(error)).boxed(),
        };
        let stream = self.next.call(call);
        async move { Ok(Observed::new(stream.await?, Charged(admitted)).boxed()) }.boxed()
    }
}

/// Counts the tokens of a response for its tenant.
struct Charged(Admitted);

impl Observe for Charged {
    fn event(&mut self, event: &mut GenerateResponse) {
        match &event.event {
            // Again when another worker resumes the response.
            Some(Event::Accepted(accepted)) => self.0.prompt(accepted.prompt_tokens.into()),
            Some(Event::Token(delta)) => self.0.generated(delta.ids.len() as u64),
            Some(Event::Finished(end)) => {
                if let Some(usage) = &end.usage {
                    self.0.used(usage.prompt_tokens.into(), usage.completion_tokens.into());
                }
            }
            _ => {}
        }
    }
}

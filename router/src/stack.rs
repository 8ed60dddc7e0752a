//! The path of a request, from top to bottom. Read this first.

use std::sync::Arc;

use stoker_shared::{ServiceError, drain::DrainGate};
use tower::{ServiceBuilder, util::BoxCloneSyncService};

use crate::{
    RouterConfig,
    call::{Call, EventStream},
    endpoint::Endpoint,
    layer::{
        admission::{Admission, Slots},
        balance::Balance,
        deadline::Deadlines,
        gate::Gated,
        hide_cached::HideCached,
        model::ModelLookup,
        outlier_detection::OutlierDetection,
        resume::Resume,
        tenant_limits::TenantLimits,
        trace::{RequestLogContext, Trace},
        validate::Validate,
    },
    metrics::Metrics,
    policy::Chooser,
    pool::Pool,
    requests::Requests,
    resume::ResumeContext,
    tenant::Priorities,
};

/// All layers of the router as one service.
pub(crate) type Stack = BoxCloneSyncService<Call, EventStream, ServiceError>;

/// Builds the stack. What a layer holds for a call (a slot, a permit, a reservation) it holds until
/// the last event of the stream that it returned.
pub(crate) fn build(
    config: &RouterConfig,
    priorities: Priorities,
    pool: &Pool,
    gate: &DrainGate,
    metrics: &Metrics,
    requests: &Requests,
) -> Stack {
    let gate = gate.clone();
    let log = RequestLogContext::new(&config.request_log, metrics, requests);
    let (admissions, tenants) = (metrics.clone(), metrics.clone());
    let chooser = Arc::new(Chooser::new(&config.balancing, rand::random()));
    let priorities = Arc::new(priorities);
    let slots = Slots::new(config, metrics.clone());
    let resume = ResumeContext::new(&config.resume, pool, metrics);

    let hide_cached = config.hide_cached_tokens;

    let stack = ServiceBuilder::new()
        // Outermost, since the layers below need the count: trace, metrics, and the router's cache
        // estimates.
        .layer_fn(move |next| HideCached::new(next, hide_cached))
        // Above the rest, so that the span, the log line and the metrics of a request cover
        // everything below.
        .layer_fn(move |next| Trace::new(next, Arc::clone(&log)))
        // A draining router refuses new calls before any work, and counts the calls still in
        // flight.
        .layer_fn(move |next| Gated::new(next, gate.clone()))
        // Above the queue: an invalid request must not wait first, and the queue orders requests by
        // the priority that their tenant is allowed.
        .layer_fn(move |next| Validate::new(next, Arc::clone(&priorities)))
        // Above the queue: a tenant beyond its limits waits outside, and its requests in the queue
        // count. Below validation, which checks what is charged.
        .layer_fn(move |next| TenantLimits::new(next, pool.clone(), tenants.clone()))
        // Above everything that waits, so that no wait exceeds the client's deadline.
        .layer_fn(Deadlines::new)
        // The only queue of the router, ordered by priority and fair between tenants. Below it, a
        // call has a slot and does not queue again.
        .layer_fn(move |next| Admission::new(next, slots.clone(), admissions.clone()))
        // Below the queue: models may have been added or removed while the request waited.
        .layer_fn(|next| ModelLookup::new(next, pool.clone()))
        // Retries, resumes and hedges. Above `Balance`, so that every attempt selects a worker
        // anew.
        .layer_fn(move |next| Resume::new(next, Arc::clone(&resume)))
        // Selects a worker that its health allows, and counts the outstanding tokens per worker.
        .layer_fn(|endpoint| Balance::new(endpoint, pool.clone(), Arc::clone(&chooser)))
        // Innermost, so that it sees a worker's errors before a layer above hides them.
        .layer_fn(OutlierDetection::new)
        // The gRPC call.
        .service(Endpoint);
    BoxCloneSyncService::new(stack)
}

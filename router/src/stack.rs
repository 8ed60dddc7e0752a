//! The way of a request, from top to bottom. Read this first.

use std::sync::Arc;

use stoker_shared::ServiceError;
use tower::{ServiceBuilder, util::BoxCloneSyncService};

use crate::{
    RouterConfig,
    call::{Call, EventStream},
    endpoint::Endpoint,
    layer::{
        admission::{Admission, Places},
        balance::Balance,
        deadline::Deadlines,
        gate::{DrainGate, Gated},
        hide_cached::HideCached,
        model::ModelLookup,
        outcome::OutlierDetection,
        resume::{Resume, Shared},
        trace::Trace,
        validate::Validate,
    },
    metrics::Metrics,
    policy::Chooser,
    pool::Pool,
    tenant::Priorities,
};

/// Every layer of the router, as one service.
pub(crate) type Stack = BoxCloneSyncService<Call, EventStream, ServiceError>;

/// Builds the stack. A stream that a layer returns is part of its job: what it holds for a call (a place,
/// a permit, a reservation) it holds until the last event.
pub(crate) fn build(
    config: &RouterConfig,
    priorities: Priorities,
    pool: &Pool,
    gate: &DrainGate,
    metrics: &Metrics,
) -> Stack {
    let (gate, requests) = (gate.clone(), metrics.clone());
    let admissions = metrics.clone();
    let chooser = Arc::new(Chooser::new(&config.balancing, rand::random()));
    let priorities = Arc::new(priorities);
    let places = Places::new(config, metrics.clone());
    let attempts = Shared::new(&config.resume, pool, metrics);

    let hidden = config.hide_cached_tokens;

    let stack = ServiceBuilder::new()
        // Outermost, since all that is below learns from it: the trace, the metrics, and what routing believes of caches.
        .layer_fn(move |next| HideCached::new(next, hidden))
        // Above all that works, so that whatever happens to a request is in its span, its line of the log and the metrics.
        .layer_fn(move |next| Trace::new(next, requests.clone()))
        // A router that drains refuses before it does any work, and counts who is still inside.
        .layer_fn(move |next| Gated::new(next, gate.clone()))
        // What cannot succeed must not wait in a queue first, and whoever waits there has the priority that its tenant
        // allows.
        .layer_fn(move |next| Validate::new(next, Arc::clone(&priorities)))
        // Above everything that waits, so that no wait is longer than the client's patience.
        .layer_fn(Deadlines::new)
        // The only queue of the router, the most urgent first and tenants by turns. Below it, a call has a place and goes
        // on at once.
        .layer_fn(move |next| Admission::new(next, places.clone(), admissions.clone()))
        // After the queue: models may have come and gone while the request waited.
        .layer_fn(|next| ModelLookup::new(next, pool.clone()))
        // A started answer finishes. Above the choice of a worker, so that every attempt chooses anew.
        .layer_fn(move |next| Resume::new(next, Arc::clone(&attempts)))
        // Counts what really is under way at a worker. Asks the worker's health who may be chosen.
        .layer_fn(|endpoint| Balance::new(endpoint, pool.clone(), Arc::clone(&chooser)))
        // Innermost, since an outcome that a layer above turns into another one is still the worker's.
        .layer_fn(OutlierDetection::new)
        // The call itself.
        .service(Endpoint);
    BoxCloneSyncService::new(stack)
}

//! The part of `stoker.v1.Admin` that only a router has: its workers and requests.

use std::time::Duration;

use futures::{FutureExt, future::BoxFuture};
use stoker_proto::v1::{ListRequestsResponse, ListWorkersResponse, WorkerState, WorkerStatus};
use stoker_shared::{
    ServiceError, VERSION,
    discovery::WorkerId,
    error::quoted,
    serve::{
        Readiness,
        admin::{RequestFilter, RouterAdmin},
    },
};

use crate::{
    metrics::Metrics,
    pool::{Pool, State},
    requests::Requests,
};

/// The workers and the requests of this router, for operators.
pub(crate) struct AdminView {
    pub(crate) pool: Pool,
    pub(crate) readiness: Readiness,
    pub(crate) requests: Requests,
    pub(crate) metrics: Metrics,
}

impl RouterAdmin for AdminView {
    fn workers(&self) -> ListWorkersResponse {
        let fleet = self.pool.fleet();
        let mut workers: Vec<_> = fleet.candidates().filter_map(status).collect();
        workers.sort_by(|a, b| (&a.worker, &a.address).cmp(&(&b.worker, &b.address)));
        let not_serving = self.readiness.borrow().as_ref().err().cloned().unwrap_or_default();
        ListWorkersResponse { workers, version: VERSION.into(), not_serving }
    }

    fn requests(&self, wanted: &RequestFilter) -> ListRequestsResponse {
        let mut listed = self.requests.list(wanted);
        listed.totals.get_or_insert_default().queued = self.metrics.queue_length();
        listed
    }

    fn drain_worker(
        &self,
        worker: String,
        timeout: Option<Duration>,
    ) -> BoxFuture<'static, Result<usize, ServiceError>> {
        let pool = self.pool.clone();
        async move { pool.drain(worker, timeout).await }.boxed()
    }
}

/// Returns the status of a candidate. `None` for a second address of a process, which is listed
/// under its first.
fn status((id, address, state): (&WorkerId, &str, &State)) -> Option<WorkerStatus> {
    let (state_name, reason) = match state {
        State::Duplicate(_) => return None,
        State::Gone { reason, .. } => (WorkerState::Gone, quoted(reason)),
        State::Draining(_) => (WorkerState::Draining, String::new()),
        State::Live(worker) if worker.liveness.is_stalled() => {
            (WorkerState::Stalled, String::new())
        }
        State::Live(worker) if worker.health.is_half_open() => {
            (WorkerState::HalfOpen, String::new())
        }
        State::Live(worker) if worker.health.is_suspected() => {
            (WorkerState::Ejected, String::new())
        }
        State::Live(_) => (WorkerState::Live, String::new()),
    };
    let mut status = WorkerStatus {
        worker: id.to_string(),
        address: address.to_owned(),
        state: state_name.into(),
        reason,
        ..WorkerStatus::default()
    };
    if let Some(worker) = state.worker() {
        status.worker.clone_from(&worker.info.worker);
        status.instance_id.clone_from(&worker.info.instance_id);
        status.model.clone_from(&worker.info.model);
        status.digest.clone_from(&worker.info.digest);
        status.version.clone_from(&worker.info.version);
        status.load = (state_name != WorkerState::Gone).then(|| worker.load());
        let running = worker.outstanding.streams();
        status.outstanding_requests = u32::try_from(running).unwrap_or(u32::MAX);
    }
    Some(status)
}

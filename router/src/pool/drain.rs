//! Drains of workers that an operator requests of this router: it sends no new requests to a
//! process until that process or the router is restarted.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use stoker_shared::{ServiceError, discovery::WorkerId, error::quoted};
use tokio::sync::oneshot;

use super::{Manager, Pool, State, TrackedCandidate, outstanding::Outstanding, worker::InstanceId};

/// Interval at which a drain looks at the number of running requests.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum number of names in an error.
const MAX_NAMES: usize = 8;

/// Work of this router at a process; one for every address that leads to it.
type Remaining = Vec<Arc<Outstanding>>;

/// A request to drain the worker with this id, address or instance id.
pub(super) struct DrainCommand {
    pub(super) worker: String,
    pub(super) reply: oneshot::Sender<Result<Remaining, ServiceError>>,
}

impl Pool {
    /// Drains the worker with this id, address or instance id: it gets no new requests of this
    /// router. Waits until the running ones there have ended, or `timeout` has passed. Returns the
    /// number of those that are still running.
    pub(crate) async fn drain(
        &self,
        worker: String,
        timeout: Option<Duration>,
    ) -> Result<usize, ServiceError> {
        let (reply, drained) = oneshot::channel();
        let stopped = || ServiceError::unavailable("the router is stopping");
        let sent = self.drains.send(DrainCommand { worker, reply }).await;
        sent.map_err(|_| stopped())?;
        let remaining = drained.await.map_err(|_| stopped())??;
        let requests = || remaining.iter().map(|one| one.streams() as usize).sum();
        let ended = async {
            let mut ticks = tokio::time::interval(POLL_INTERVAL);
            while requests() > 0_usize {
                ticks.tick().await;
            }
        };
        match timeout {
            Some(timeout) => drop(tokio::time::timeout(timeout, ended).await),
            None => ended.await,
        }
        Ok(requests())
    }
}

impl Manager {
    /// Marks the process with this name as draining. Returns the work of this router there.
    pub(super) fn drain(&mut self, name: &str) -> Result<Remaining, ServiceError> {
        let instance = self.instance(name)?;
        tracing::info!(
            worker = name,
            %instance,
            "draining on request of an operator; gets no requests of this router"
        );
        let mut remaining = Vec::new();
        let mut known = HashSet::new();
        for tracked in self.candidates.values_mut() {
            let Some(worker) = tracked.state.worker().map(Arc::clone) else { continue };
            known.insert(worker.instance.clone());
            if worker.instance == instance {
                remaining.push(Arc::clone(&worker.outstanding));
                if matches!(tracked.state, State::Live(_)) {
                    tracked.state = State::Draining(worker);
                }
            }
        }
        self.drained.insert(instance);
        // Forgets processes that have ended.
        self.drained.retain(|instance| known.contains(instance));
        Ok(remaining)
    }

    /// Returns the only process with this id, address or instance id.
    fn instance(&self, name: &str) -> Result<InstanceId, ServiceError> {
        let mut processes = BTreeMap::new();
        let mut unreached = None;
        for (id, tracked) in &self.candidates {
            match tracked.state.worker() {
                Some(worker)
                    if is_named(id, tracked, name)
                        || worker.info.worker == name
                        || worker.instance.as_str() == name =>
                {
                    processes.insert(worker.instance.clone(), tracked.address.as_str());
                }
                None if is_named(id, tracked, name) => unreached = tracked.state.reason(),
                _ => {}
            }
        }
        let why = match (processes.pop_first(), unreached) {
            (Some((instance, _)), _) if processes.is_empty() => return Ok(instance),
            (Some(first), _) => {
                let all = [first].into_iter().chain(processes).take(MAX_NAMES);
                let all: Vec<_> = all.map(|(id, address)| format!("{id} at {address}")).collect();
                format!("are several workers; give the instance id of one: {}", all.join(", "))
            }
            (None, Some(why)) => format!("was never reached ({why}) and gets no requests"),
            (None, None) => {
                format!("is no worker of this router; choose one of: {}", self.names())
            }
        };
        Err(ServiceError::invalid("worker", format!("`{}` {why}", quoted(name))))
    }

    /// Returns the ids of some workers.
    fn names(&self) -> String {
        let name = |(id, tracked): (&WorkerId, &TrackedCandidate)| match tracked.state.worker() {
            Some(worker) => worker.info.worker.clone(),
            None => id.to_string(),
        };
        let mut names: Vec<_> = self.candidates.iter().map(name).collect();
        names.sort();
        let more = names.len().saturating_sub(MAX_NAMES);
        names.truncate(MAX_NAMES);
        if more > 0 {
            names.push(format!("{more} more"));
        }
        if names.is_empty() { "none".into() } else { names.join(", ") }
    }
}

/// Whether discovery knows a candidate by this name or address.
fn is_named(id: &WorkerId, tracked: &TrackedCandidate, name: &str) -> bool {
    id.as_str() == name || tracked.address == name
}

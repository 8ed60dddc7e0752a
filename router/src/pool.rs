//! The pool of workers: connects to the candidates of a discovery source and tracks their state.

mod candidate;
pub(crate) mod channel;
mod drain;
mod fleet;
pub(crate) mod health;
pub(crate) mod liveness;
pub(crate) mod model;
pub(crate) mod outstanding;
pub(crate) mod reservation;
mod reviewer;
pub(crate) mod worker;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use stoker_shared::{
    discovery::{Candidate, Change, Changes, Refresh, Source, WorkerId},
    tls::ClientTls,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use drain::DrainCommand;
pub(crate) use fleet::{Fleet, State};
pub(crate) use reviewer::review;
use worker::{InstanceId, Worker};

use crate::config::ModelAliases;

/// Consecutive unusable states after which a withdrawn candidate is removed. A withdrawn candidate
/// that serves stays in use, since an etcd that was wiped or paused withdraws all workers.
const MAX_MISSES: u32 = 5;

/// A state change reported by a candidate's task.
struct StateReport {
    id: WorkerId,
    /// Distinguishes the task from an earlier one for the same id at another address.
    generation: u64,
    state: State,
}

/// Follows a discovery source. Clones share one state.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    fleet: watch::Receiver<Arc<Fleet>>,
    review: Arc<Notify>,
    drains: mpsc::Sender<DrainCommand>,
    _manager: Arc<AbortOnDropHandle<()>>,
}

impl Pool {
    /// Connects to and watches every candidate until the last clone is dropped.
    /// A worker is stalled if it shows no progress for `stall_timeout`.
    /// `aliases` are other names for models. Connections use `tls` if it is given.
    pub(crate) fn follow(
        source: Source,
        stall_timeout: Duration,
        aliases: ModelAliases,
        tls: Option<ClientTls>,
    ) -> Self {
        let Source { changes, refresh } = source;
        let (publish, fleet) = watch::channel(Arc::default());
        let (reports, inbox) = mpsc::channel(256);
        let (drains, commands) = mpsc::channel(1);
        let review = Arc::new(Notify::new());
        let manager = Manager {
            candidates: HashMap::new(),
            generation: 0,
            source_error: None,
            duplicates: BTreeMap::new(),
            drained: HashSet::new(),
            stall_timeout,
            tls,
            aliases: Arc::new(aliases),
            refresh,
            reports,
            review: Arc::clone(&review),
            publish,
        };
        let task = tokio::spawn(manager.run(changes, inbox, commands));
        Self { fleet, review, drains, _manager: Arc::new(AbortOnDropHandle::new(task)) }
    }

    /// A pool of fixed workers without a discovery source, for simulations and tests.
    pub(crate) fn fixed(workers: &[Arc<Worker>]) -> Self {
        let states: Vec<_> = workers.iter().map(|w| (&w.id, State::Live(Arc::clone(w)))).collect();
        let fleet = Fleet::new(states.iter().map(|(id, state)| (*id, state)), None);
        let (publish, fleet) = watch::channel(Arc::new(fleet));
        let nothing = async move { publish.closed().await };
        Self {
            fleet,
            review: Arc::default(),
            // Fixed workers cannot be drained.
            drains: mpsc::channel(1).0,
            _manager: Arc::new(AbortOnDropHandle::new(tokio::spawn(nothing))),
        }
    }

    /// Returns the current snapshot of all workers. A request takes one per attempt and holds it
    /// briefly.
    pub(crate) fn fleet(&self) -> Arc<Fleet> {
        self.fleet.borrow().clone()
    }

    /// Returns the handle that is notified when a worker's health needs a review.
    pub(crate) fn review(&self) -> Arc<Notify> {
        Arc::clone(&self.review)
    }

    /// Returns a receiver of fleet snapshots.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Fleet>> {
        self.fleet.clone()
    }
}

/// The task that owns the set of candidates. As the only writer, it needs no lock.
struct Manager {
    candidates: HashMap<WorkerId, TrackedCandidate>,
    generation: u64,
    /// Error that prevents the discovery source from listing workers.
    source_error: Option<String>,
    /// Candidates that lead to the same process as another candidate, each with that one.
    duplicates: BTreeMap<WorkerId, WorkerId>,
    /// Processes that operators drain: this router sends them no new requests.
    drained: HashSet<InstanceId>,
    stall_timeout: Duration,
    tls: Option<ClientTls>,
    aliases: Arc<ModelAliases>,
    /// Used when a worker is lost: the source may know another address.
    refresh: Refresh,
    reports: mpsc::Sender<StateReport>,
    /// Notified when a worker's health needs a review.
    review: Arc<Notify>,
    publish: watch::Sender<Arc<Fleet>>,
}

/// A candidate and its task. Dropping it stops the task; running streams hold the worker
/// themselves.
struct TrackedCandidate {
    address: String,
    /// Whether its id is the worker's own.
    is_named: bool,
    generation: u64,
    state: State,
    /// Whether the discovery source has removed it.
    withdrawn: bool,
    /// The process at its address when that happened.
    withdrawn_instance: Option<InstanceId>,
    /// Number of consecutive unusable states.
    misses: u32,
    /// Ends the backoff before the next connection attempt.
    retry: Arc<Notify>,
    _task: AbortOnDropHandle<()>,
}

impl Manager {
    async fn run(
        mut self,
        mut changes: Changes,
        mut inbox: mpsc::Receiver<StateReport>,
        mut commands: mpsc::Receiver<DrainCommand>,
    ) {
        let mut source_lives = true;
        loop {
            tokio::select! {
                change = changes.next(), if source_lives => match change {
                    Some(change) => self.change(change),
                    // The last known set stays in use when the source ends.
                    None => source_lives = false,
                },
                Some(report) = inbox.recv() => self.report(report),
                Some(command) = commands.recv() => {
                    let drained = self.drain(&command.worker);
                    // Before the reply, after which no request is sent there.
                    self.publish();
                    let _ = command.reply.send(drained);
                }
            }
            // At start, many reports arrive at once: publish one snapshot for all of them.
            while let Ok(report) = inbox.try_recv() {
                self.report(report);
            }
            self.publish();
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Insert(candidate) => self.insert(candidate),
            Change::Remove(id) => self.withdraw(&id),
            Change::SourceError(source_error) => self.source_error = source_error,
        }
    }

    fn insert(&mut self, candidate: Candidate) {
        if let Some(tracked) = self.candidates.get_mut(&candidate.id)
            && tracked.address == candidate.address
        {
            tracked.withdrawn = false;
            tracked.misses = 0;
            tracked.retry.notify_one();
            return;
        }
        self.generation += 1;
        let generation = self.generation;
        let id = candidate.id.clone();
        let address = candidate.address.clone();
        let is_named = candidate.is_named;
        let retry = Arc::new(Notify::new());
        let follow = candidate::follow(
            candidate,
            generation,
            self.stall_timeout,
            self.tls.clone(),
            Arc::clone(&retry),
            self.reports.clone(),
            Arc::clone(&self.review),
        );
        let tracked = TrackedCandidate {
            address,
            is_named,
            generation,
            state: State::unknown(),
            withdrawn: false,
            withdrawn_instance: None,
            misses: 0,
            retry,
            _task: AbortOnDropHandle::new(tokio::spawn(follow)),
        };
        self.candidates.insert(id, tracked);
    }

    fn withdraw(&mut self, id: &WorkerId) {
        if let Some(tracked) = self.candidates.get_mut(id) {
            tracked.withdrawn = true;
            tracked.withdrawn_instance = tracked.state.worker().map(|w| w.instance.clone());
            tracing::info!(worker = %id, "withdrawn by discovery; stays in use while reachable");
            self.remove_if_lost(id);
        }
    }

    fn report(&mut self, report: StateReport) {
        if let Some(tracked) = self.candidates.get_mut(&report.id)
            && tracked.generation == report.generation
        {
            let usable = !matches!(report.state, State::Gone { .. });
            if !usable {
                self.refresh.request();
            }
            tracked.misses = if usable { 0 } else { tracked.misses.saturating_add(1) };
            tracked.state = match report.state {
                State::Live(worker) if self.drained.contains(&worker.instance) => {
                    State::Draining(worker)
                }
                state => state,
            };
            self.remove_if_lost(&report.id);
        }
    }

    fn remove_if_lost(&mut self, id: &WorkerId) {
        let lost = |tracked: &TrackedCandidate| {
            // The address may have been reassigned to another worker.
            let is_other = |worker: &Arc<Worker>| match &tracked.withdrawn_instance {
                _ if tracked.is_named => worker.info.worker != id.as_str(),
                Some(instance) => worker.instance != *instance,
                None => true,
            };
            let is_other = tracked.state.worker().is_some_and(is_other);
            tracked.withdrawn && (is_other || tracked.misses >= MAX_MISSES)
        };
        if self.candidates.get(id).is_some_and(lost) {
            self.candidates.remove(id);
            tracing::info!(worker = %id, "removed: withdrawn by discovery and not reachable");
        }
    }

    fn publish(&mut self) {
        let states = self.candidates.iter().map(|(id, c)| (id, &c.state));
        let addresses = self.candidates.iter().map(|(id, c)| (id.clone(), c.address.clone()));
        let fleet = Fleet::new(states, self.source_error.clone());
        let fleet = fleet.with_aliases(&self.aliases).with_addresses(addresses);
        let duplicates: BTreeMap<_, _> = fleet.duplicates().collect();
        for (id, of) in &duplicates {
            if self.duplicates.get(id) != Some(of) {
                tracing::warn!(
                    worker = %id,
                    same_as = %of,
                    "two addresses lead to the same worker process; it is used once"
                );
            }
        }
        self.duplicates = duplicates;
        self.publish.send_replace(Arc::new(fleet));
    }
}

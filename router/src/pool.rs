//! The workers that the router knows, and which of them live.

mod candidate;
pub(crate) mod channel;
mod fleet;
pub(crate) mod health;
pub(crate) mod liveness;
pub(crate) mod model;
pub(crate) mod reservation;
pub(crate) mod worker;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use stoker_shared::discovery::{Candidate, Change, Changes, WorkerId};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

pub(crate) use fleet::{Fleet, State};
use worker::Worker;

/// A candidate that its source no longer names is forgotten once it was of no use this often in a row. While
/// it serves, it goes on serving: an etcd that was wiped or paused withdraws everybody.
const CHANCES: u32 = 5;

/// What a candidate's task tells about it.
struct Report {
    id: WorkerId,
    /// Tells a task from the one before it, at an earlier address.
    generation: u64,
    state: State,
}

/// Follows a stream of changes. Clones share what they know.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    fleet: watch::Receiver<Arc<Fleet>>,
    news: Arc<Notify>,
    _manager: Arc<AbortOnDropHandle<()>>,
}

impl Pool {
    /// Looks after every candidate until the last clone is dropped.
    /// A worker stands still if it gives no sign of progress for `patience`.
    pub(crate) fn follow(changes: Changes, patience: Duration) -> Self {
        let (publish, fleet) = watch::channel(Arc::default());
        let (reports, inbox) = mpsc::channel(256);
        let news = Arc::new(Notify::new());
        let manager = Manager {
            candidates: HashMap::new(),
            generation: 0,
            trouble: None,
            duplicates: BTreeMap::new(),
            patience,
            reports,
            news: Arc::clone(&news),
            publish,
        };
        let task = tokio::spawn(manager.run(changes, inbox));
        Self { fleet, news, _manager: Arc::new(AbortOnDropHandle::new(task)) }
    }

    /// Workers that come from nowhere and stay, for simulations and tests.
    pub(crate) fn fixed(workers: &[Arc<Worker>]) -> Self {
        let states: Vec<_> = workers.iter().map(|w| (&w.id, State::Live(Arc::clone(w)))).collect();
        let fleet = Fleet::new(states.iter().map(|(id, state)| (*id, state)), None);
        let (publish, fleet) = watch::channel(Arc::new(fleet));
        let nothing = async move { publish.closed().await };
        Self {
            fleet,
            news: Arc::default(),
            _manager: Arc::new(AbortOnDropHandle::new(tokio::spawn(nothing))),
        }
    }

    /// Everybody, as of now. Held briefly: a request takes it once an attempt.
    pub(crate) fn fleet(&self) -> Arc<Fleet> {
        self.fleet.borrow().clone()
    }

    /// Told whenever a worker's health asks for a review.
    pub(crate) fn news(&self) -> Arc<Notify> {
        Arc::clone(&self.news)
    }

    /// Sees every change of the fleet.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Fleet>> {
        self.fleet.clone()
    }
}

/// The only one who changes the set of workers, so that it needs no lock.
struct Manager {
    candidates: HashMap<WorkerId, Followed>,
    generation: u64,
    /// What keeps the source from naming workers.
    trouble: Option<String>,
    /// Candidates that lead to the process of another one, which is the one that counts.
    duplicates: BTreeMap<WorkerId, WorkerId>,
    patience: Duration,
    reports: mpsc::Sender<Report>,
    /// What the workers' health has to tell.
    news: Arc<Notify>,
    publish: watch::Sender<Arc<Fleet>>,
}

/// Dropping it stops the task. Streams that run on the worker hold the worker themselves.
struct Followed {
    address: String,
    generation: u64,
    state: State,
    /// Its source no longer names it.
    withdrawn: bool,
    /// How often in a row it was of no use.
    misses: u32,
    /// Ends its wait for another try.
    retry: Arc<Notify>,
    _task: AbortOnDropHandle<()>,
}

impl Manager {
    async fn run(mut self, mut changes: Changes, mut inbox: mpsc::Receiver<Report>) {
        let mut source_lives = true;
        loop {
            tokio::select! {
                change = changes.next(), if source_lives => match change {
                    Some(change) => self.change(change),
                    // The last known set stays: a source that is gone is no reason to stop serving.
                    None => source_lives = false,
                },
                Some(report) = inbox.recv() => self.report(report),
            }
            // Many come at once at the start: publish the set once for all of them.
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
            Change::Trouble(trouble) => self.trouble = trouble,
        }
    }

    fn insert(&mut self, candidate: Candidate) {
        if let Some(followed) = self.candidates.get_mut(&candidate.id)
            && followed.address == candidate.address
        {
            followed.withdrawn = false;
            followed.misses = 0;
            followed.retry.notify_one();
            return;
        }
        self.generation += 1;
        let generation = self.generation;
        let id = candidate.id.clone();
        let address = candidate.address.clone();
        let retry = Arc::new(Notify::new());
        let follow = candidate::follow(
            candidate,
            generation,
            self.patience,
            Arc::clone(&retry),
            self.reports.clone(),
            Arc::clone(&self.news),
        );
        let followed = Followed {
            address,
            generation,
            state: State::unknown(),
            withdrawn: false,
            misses: 0,
            retry,
            _task: AbortOnDropHandle::new(tokio::spawn(follow)),
        };
        self.candidates.insert(id, followed);
    }

    fn withdraw(&mut self, id: &WorkerId) {
        if let Some(followed) = self.candidates.get_mut(id) {
            followed.withdrawn = true;
            tracing::info!(worker = %id, "withdrawn; stays in use for as long as it answers");
            self.forget_if_lost(id);
        }
    }

    fn report(&mut self, report: Report) {
        if let Some(followed) = self.candidates.get_mut(&report.id)
            && followed.generation == report.generation
        {
            let of_use = !matches!(report.state, State::Gone { .. });
            followed.misses = if of_use { 0 } else { followed.misses.saturating_add(1) };
            followed.state = report.state;
            self.forget_if_lost(&report.id);
        }
    }

    fn forget_if_lost(&mut self, id: &WorkerId) {
        let lost = |followed: &Followed| {
            // Addresses are given to others in time.
            let stranger = followed.state.worker().is_some_and(|w| w.info.worker != id.as_str());
            followed.withdrawn && (stranger || followed.misses >= CHANCES)
        };
        if self.candidates.get(id).is_some_and(lost) {
            self.candidates.remove(id);
            tracing::info!(worker = %id, "forgotten: withdrawn, and it does not answer");
        }
    }

    fn publish(&mut self) {
        let states = self.candidates.iter().map(|(id, c)| (id, &c.state));
        let fleet = Fleet::new(states, self.trouble.clone());
        let duplicates: BTreeMap<_, _> = fleet.duplicates().collect();
        for (id, of) in &duplicates {
            if self.duplicates.get(id) != Some(of) {
                tracing::warn!(worker = %id, same_as = %of, "two addresses of one worker: it counts once");
            }
        }
        self.duplicates = duplicates;
        self.publish.send_replace(Arc::new(fleet));
    }
}

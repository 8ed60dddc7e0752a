//! The workers that the router knows, and which of them live.

mod backoff;
mod candidate;
pub(crate) mod channel;
mod fleet;
mod model;
pub(crate) mod worker;

use std::{collections::HashMap, sync::Arc};

use futures::StreamExt;
use stoker_shared::discovery::{Candidate, Change, Changes, WorkerId};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

pub(crate) use fleet::{Fleet, State};

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
    _manager: Arc<AbortOnDropHandle<()>>,
}

impl Pool {
    /// Looks after every candidate until the last clone is dropped.
    pub(crate) fn follow(changes: Changes) -> Self {
        let (publish, fleet) = watch::channel(Arc::default());
        let (reports, inbox) = mpsc::channel(256);
        let manager = Manager { candidates: HashMap::new(), generation: 0, reports, publish };
        let task = tokio::spawn(manager.run(changes, inbox));
        Self { fleet, _manager: Arc::new(AbortOnDropHandle::new(task)) }
    }

    /// Everybody, as of now. Held briefly: a request takes it once an attempt.
    pub(crate) fn fleet(&self) -> Arc<Fleet> {
        self.fleet.borrow().clone()
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
    reports: mpsc::Sender<Report>,
    publish: watch::Sender<Arc<Fleet>>,
}

/// Dropping it stops the task. Streams that run on the worker hold the worker themselves.
struct Followed {
    generation: u64,
    state: State,
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
            Change::Remove(id) => {
                if self.candidates.remove(&id).is_some() {
                    tracing::info!(worker = %id, "withdrawn");
                }
            }
        }
    }

    fn insert(&mut self, candidate: Candidate) {
        self.generation += 1;
        let generation = self.generation;
        let id = candidate.id.clone();
        let task = tokio::spawn(candidate::follow(candidate, generation, self.reports.clone()));
        let followed =
            Followed { generation, state: State::unknown(), _task: AbortOnDropHandle::new(task) };
        self.candidates.insert(id, followed);
    }

    fn report(&mut self, report: Report) {
        if let Some(followed) = self.candidates.get_mut(&report.id)
            && followed.generation == report.generation
        {
            followed.state = report.state;
        }
    }

    fn publish(&self) {
        let states = self.candidates.iter().map(|(id, c)| (id, &c.state));
        self.publish.send_replace(Arc::new(Fleet::new(states)));
    }
}

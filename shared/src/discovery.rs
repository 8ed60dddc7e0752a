//! Discovery of workers: a stream of changes, independent of the source.
//!
//! There are three sources: addresses and names in [`dns`], a registry inside the process, and
//! [`etcd`]. All of them report candidates; the router determines whether a candidate is alive.

mod address;
pub mod dns;
#[cfg(feature = "etcd")]
pub mod etcd;

use std::{collections::BTreeMap, fmt, pin::Pin, sync::Arc};

use futures::{Stream, StreamExt, stream};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

pub use address::{Address, NotAnAddress};

/// Id of a worker for its lifetime. Unique in a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(Arc<str>);

impl WorkerId {
    /// Creates an id from any text that is unique in the cluster: the address, if there is nothing
    /// better.
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self(id.into())
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A worker that a source reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Id of the worker.
    pub id: WorkerId,
    /// Address that the worker listens on, `host:port`.
    pub address: String,
    /// Whether `id` is the worker's own id. Otherwise it only says where the address comes from.
    pub is_named: bool,
}

impl Candidate {
    /// Returns a candidate of which the address alone is known.
    pub fn at(address: Address) -> Self {
        let address = String::from(address);
        Self { id: WorkerId::new(address.as_str()), address, is_named: false }
    }

    /// Returns a candidate that is known by its own id.
    pub fn named(id: WorkerId, address: String) -> Self {
        Self { id, address, is_named: true }
    }
}

/// One change of the set of candidates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A candidate is new, has another address, or has announced itself again.
    Insert(Candidate),
    /// A candidate is no longer reported. This is only a hint: the worker may still be alive.
    Remove(WorkerId),
    /// Why the source reports no candidates, as a message for operators. `None` if it reports any.
    SourceError(Option<String>),
}

/// Changes from any source. The stream does not end while the source lives.
pub type Changes = Pin<Box<dyn Stream<Item = Change> + Send>>;

/// Changes, and a way to ask for them.
pub struct Source {
    /// The changes.
    pub changes: Changes,
    /// Requests that the source looks again.
    pub refresh: Refresh,
}

/// Requests that a source which polls looks again at once, since a worker has failed. Sources that
/// are notified of changes ignore it. Clones share one state.
#[derive(Debug, Clone)]
pub struct Refresh(watch::Sender<()>);

impl Default for Refresh {
    fn default() -> Self {
        Self(watch::Sender::new(()))
    }
}

impl Refresh {
    /// Requests it.
    pub fn request(&self) {
        self.0.send_replace(());
    }

    fn subscribe(&self) -> watch::Receiver<()> {
        self.0.subscribe()
    }
}

impl From<Changes> for Source {
    fn from(changes: Changes) -> Self {
        Self { changes, refresh: Refresh::default() }
    }
}

type CandidateSet = BTreeMap<WorkerId, String>;

/// Discovery inside one process: workers register, and routers watch.
#[derive(Debug, Clone)]
pub struct Registry(watch::Sender<Arc<CandidateSet>>);

impl Default for Registry {
    fn default() -> Self {
        Self(watch::Sender::new(Arc::default()))
    }
}

impl Registry {
    /// Announces a candidate until the returned registration is dropped.
    pub fn register(&self, candidate: Candidate) -> Registration {
        let id = candidate.id.clone();
        self.0.send_modify(|set| {
            Arc::make_mut(set).insert(candidate.id, candidate.address);
        });
        Registration { registry: self.clone(), id }
    }

    /// Returns the current candidates, then every change.
    pub fn watch(&self) -> Changes {
        let mut known = Arc::<CandidateSet>::default();
        WatchStream::new(self.0.subscribe())
            .flat_map(move |current| {
                let changes = difference(&known, &current, true);
                known = current;
                stream::iter(changes)
            })
            .boxed()
    }
}

/// Returns the changes that turn one set into another, of candidates whose ids are their own if
/// `is_named`. Also used by sources that poll instead of watching.
fn difference(before: &CandidateSet, after: &CandidateSet, is_named: bool) -> Vec<Change> {
    let removed = before.keys().filter(|id| !after.contains_key(id)).cloned().map(Change::Remove);
    let inserted = after
        .iter()
        .filter(|(id, address)| before.get(id) != Some(address))
        .map(|(id, address)| Candidate { id: id.clone(), address: address.clone(), is_named })
        .map(Change::Insert);
    removed.chain(inserted).collect()
}

/// Keeps a candidate announced. Dropping it withdraws the candidate.
#[derive(Debug)]
pub struct Registration {
    registry: Registry,
    id: WorkerId,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.0.send_modify(|set| {
            Arc::make_mut(set).remove(&self.id);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(id: &str, address: &str) -> Candidate {
        Candidate::named(WorkerId::new(id), address.into())
    }

    #[tokio::test]
    async fn a_watcher_receives_current_candidates_and_changes() {
        let registry = Registry::default();
        let a = registry.register(candidate("a", "127.0.0.1:1"));
        let mut changes = registry.watch();
        assert_eq!(changes.next().await, Some(Change::Insert(candidate("a", "127.0.0.1:1"))));
        let _b = registry.register(candidate("b", "127.0.0.1:2"));
        assert_eq!(changes.next().await, Some(Change::Insert(candidate("b", "127.0.0.1:2"))));
        drop(a);
        assert_eq!(changes.next().await, Some(Change::Remove(WorkerId::new("a"))));
    }
}

//! Who is there: a stream of changes, whatever its source.
//!
//! Three sources live here: a static list, a registry inside the process, and [`etcd`]. All give candidates;
//! whether a candidate lives is for the router to find out.

mod address;
#[cfg(feature = "etcd")]
pub mod etcd;

use std::{collections::BTreeMap, fmt, pin::Pin, sync::Arc};

use futures::{Stream, StreamExt, stream};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

pub use address::{Address, NotAnAddress};

/// Names a worker for as long as it lives. Unique in a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(Arc<str>);

impl WorkerId {
    /// Any text that is unique in the cluster; its address, if nothing better is known.
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self(id.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Who it is.
    pub id: WorkerId,
    /// Where it listens, `host:port`.
    pub address: String,
}

/// One change of the set of candidates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A candidate is new, has another address, or announced itself again.
    Insert(Candidate),
    /// A candidate is no longer named: a hint, not the truth. It may be alive and well.
    Remove(WorkerId),
    /// What keeps the source from naming anybody, for people; nothing if it names somebody.
    SourceError(Option<String>),
}

/// Changes from any source. It never ends while the source lives.
pub type Changes = Pin<Box<dyn Stream<Item = Change> + Send>>;

/// Candidates that never change, named by their addresses.
pub fn static_list(addresses: impl IntoIterator<Item = String>) -> Changes {
    let inserts: Vec<_> = addresses
        .into_iter()
        .map(|address| Change::Insert(Candidate { id: WorkerId::new(address.as_str()), address }))
        .collect();
    stream::iter(inserts).chain(stream::pending()).boxed()
}

type Set = BTreeMap<WorkerId, String>;

/// Discovery inside one process: workers register, routers watch.
#[derive(Debug, Clone)]
pub struct Registry(watch::Sender<Arc<Set>>);

impl Default for Registry {
    fn default() -> Self {
        Self(watch::Sender::new(Arc::default()))
    }
}

impl Registry {
    /// Announces a candidate until the registration is dropped.
    pub fn register(&self, candidate: Candidate) -> Registration {
        let id = candidate.id.clone();
        self.0.send_modify(|set| {
            Arc::make_mut(set).insert(candidate.id, candidate.address);
        });
        Registration { registry: self.clone(), id }
    }

    /// The candidates that are there, then every change.
    pub fn watch(&self) -> Changes {
        let mut known = Arc::<Set>::default();
        WatchStream::new(self.0.subscribe())
            .flat_map(move |now| {
                let changes = difference(&known, &now);
                known = now;
                stream::iter(changes)
            })
            .boxed()
    }
}

/// What turns one set into another. Sources that list rather than watch use it too.
pub fn difference(before: &Set, after: &Set) -> Vec<Change> {
    let gone = before.keys().filter(|id| !after.contains_key(id)).cloned().map(Change::Remove);
    let new = after.iter().filter(|(id, address)| before.get(id) != Some(address)).map(
        |(id, address)| Change::Insert(Candidate { id: id.clone(), address: address.clone() }),
    );
    gone.chain(new).collect()
}

/// Keeps a candidate announced; dropping it withdraws the candidate.
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
        Candidate { id: WorkerId::new(id), address: address.into() }
    }

    #[tokio::test]
    async fn a_watcher_sees_what_was_there_and_what_changes() {
        let registry = Registry::default();
        let a = registry.register(candidate("a", "127.0.0.1:1"));
        let mut changes = registry.watch();
        assert_eq!(changes.next().await, Some(Change::Insert(candidate("a", "127.0.0.1:1"))));
        let _b = registry.register(candidate("b", "127.0.0.1:2"));
        assert_eq!(changes.next().await, Some(Change::Insert(candidate("b", "127.0.0.1:2"))));
        drop(a);
        assert_eq!(changes.next().await, Some(Change::Remove(WorkerId::new("a"))));
    }

    #[tokio::test]
    async fn a_static_list_stays_open() {
        let mut changes = static_list(["h:1".to_owned()]);
        assert_eq!(changes.next().await, Some(Change::Insert(candidate("h:1", "h:1"))));
        assert!(futures::poll!(changes.next()).is_pending());
    }
}

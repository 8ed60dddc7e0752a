//! The workers that a router would know, and the keys in etcd.

use std::{collections::BTreeMap, time::Duration};

use etcd_client::{Client, GetOptions};
use futures::StreamExt;
use stoker_shared::discovery::{Change, Changes};
use tokio::time::timeout;

use crate::{PREFIX, server::Etcd};

/// Limit for waiting, far longer than anything here takes.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The result of all changes.
pub(crate) struct View {
    changes: Changes,
    pub(crate) workers: BTreeMap<String, String>,
    pub(crate) source_error: Option<String>,
    pub(crate) seen: Vec<Change>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, source error {:?}, after {:?}", self.workers, self.source_error, self.seen)
    }
}

impl View {
    pub(crate) fn new(changes: Changes) -> Self {
        Self { changes, workers: BTreeMap::new(), source_error: None, seen: Vec::new() }
    }

    /// Applies changes until `holds` returns true.
    pub(crate) async fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            let change = timeout(TEST_TIMEOUT, self.changes.next()).await;
            let change =
                change.unwrap_or_else(|_| panic!("the condition was never met: {self:?}")).unwrap();
            self.seen.push(change.clone());
            match change {
                Change::Insert(candidate) => {
                    self.workers.insert(candidate.id.to_string(), candidate.address);
                }
                Change::Remove(worker) => {
                    self.workers.remove(worker.as_str());
                }
                Change::SourceError(error) => self.source_error = error,
            }
        }
    }

    pub(crate) fn has(&self, worker: &str, address: &str) -> bool {
        self.workers.get(worker).is_some_and(|known| known == address)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    pub(crate) fn error_contains(&self, parts: &[&str]) -> bool {
        self.source_error
            .as_ref()
            .is_some_and(|error| parts.iter().all(|part| error.contains(part)))
    }
}

/// A key in etcd.
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) value: Vec<u8>,
    pub(crate) lease: i64,
}

impl Key {
    /// Returns whether both have the same name, value and lease.
    pub(crate) fn is(&self, other: &Self) -> bool {
        (&self.name, &self.value, self.lease) == (&other.name, &other.value, other.lease)
    }
}

/// Returns all keys under the prefix.
pub(crate) async fn keys(etcd: &Etcd) -> Vec<Key> {
    let prefix = GetOptions::new().with_prefix();
    let found = client(etcd).await.get(PREFIX, Some(prefix)).await.unwrap();
    let key = |kv: &etcd_client::KeyValue| Key {
        name: kv.key_str().unwrap().to_owned(),
        value: kv.value().to_vec(),
        lease: kv.lease(),
    };
    found.kvs().iter().map(key).collect()
}

/// Waits until `condition` holds for the keys in etcd.
pub(crate) async fn etcd_has(etcd: &Etcd, description: &str, condition: impl Fn(&[Key]) -> bool) {
    let poll = async {
        while !condition(&keys(etcd).await) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TEST_TIMEOUT, poll).await.unwrap_or_else(|_| panic!("etcd never had {description}"));
}

pub(crate) async fn put(etcd: &Etcd, key: &str, value: &str) {
    client(etcd).await.put(key, value, None).await.unwrap();
}

pub(crate) async fn remove(etcd: &Etcd, key: &str) {
    client(etcd).await.delete(key, None).await.unwrap();
}

/// Returns a client, once etcd responds.
pub(crate) async fn client(etcd: &Etcd) -> Client {
    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    let ready = async {
        while client.get("x", None).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TEST_TIMEOUT, ready).await.expect("etcd must respond");
    client
}

//! What a router would know, and what etcd has.

use std::{collections::BTreeMap, time::Duration};

use etcd_client::{Client, GetOptions};
use futures::StreamExt;
use stoker_shared::discovery::{Change, Changes};
use tokio::time::timeout;

use crate::{PREFIX, server::Etcd};

/// Far longer than anything here takes: a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The sum of all changes.
pub(crate) struct View {
    changes: Changes,
    pub(crate) workers: BTreeMap<String, String>,
    pub(crate) trouble: Option<String>,
    pub(crate) seen: Vec<Change>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, trouble {:?}, after {:?}", self.workers, self.trouble, self.seen)
    }
}

impl View {
    pub(crate) fn new(changes: Changes) -> Self {
        Self { changes, workers: BTreeMap::new(), trouble: None, seen: Vec::new() }
    }

    /// Follows the changes until `holds`.
    pub(crate) async fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            let change = timeout(PATIENCE, self.changes.next()).await;
            let change =
                change.unwrap_or_else(|_| panic!("it never came to it: {self:?}")).unwrap();
            self.seen.push(change.clone());
            match change {
                Change::Insert(candidate) => {
                    self.workers.insert(candidate.id.to_string(), candidate.address);
                }
                Change::Remove(worker) => {
                    self.workers.remove(worker.as_str());
                }
                Change::SourceError(trouble) => self.trouble = trouble,
            }
        }
    }

    pub(crate) fn has(&self, worker: &str, address: &str) -> bool {
        self.workers.get(worker).is_some_and(|known| known == address)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    pub(crate) fn trouble_says(&self, parts: &[&str]) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| parts.iter().all(|part| trouble.contains(part)))
    }
}

/// A key, as etcd has it.
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) value: Vec<u8>,
    pub(crate) lease: i64,
}

impl Key {
    /// Whether both have the same name, value and lease.
    pub(crate) fn is(&self, other: &Self) -> bool {
        (&self.name, &self.value, self.lease) == (&other.name, &other.value, other.lease)
    }
}

/// Everything under the prefix.
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

/// Waits until what etcd has is `as_wanted`.
pub(crate) async fn etcd_has(etcd: &Etcd, wanted: &str, as_wanted: impl Fn(&[Key]) -> bool) {
    let poll = async {
        while !as_wanted(&keys(etcd).await) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, poll).await.unwrap_or_else(|_| panic!("etcd never had {wanted}"));
}

pub(crate) async fn put(etcd: &Etcd, key: &str, value: &str) {
    client(etcd).await.put(key, value, None).await.unwrap();
}

pub(crate) async fn remove(etcd: &Etcd, key: &str) {
    client(etcd).await.delete(key, None).await.unwrap();
}

/// A client, once etcd answers.
pub(crate) async fn client(etcd: &Etcd) -> Client {
    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    let answers = async {
        while client.get("x", None).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, answers).await.expect("etcd must answer");
    client
}

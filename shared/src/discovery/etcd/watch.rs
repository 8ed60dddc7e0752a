//! A router's side: everybody under the prefix, and every change.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use etcd_client::{Client, GetOptions, KeyValue, WatchOptions, WatchResponse, WatchStream};
use futures::StreamExt;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::{
    EtcdConfig,
    attempts::{Attempts, kv, watches},
    excerpt::excerpt,
    failure::{ANSWER, Failure, within},
    worker_record,
};
use crate::{
    discovery::{Candidate, Change, Changes, Set, WorkerId, difference},
    guarded::Guarded,
};

/// Watches have lost events in some versions of etcd: ask again from time to time.
const RELIST: Duration = Duration::from_secs(30);
/// Changes that may wait for whoever follows them.
const WAITING_CHANGES: usize = 64;

/// Follows the workers that announce themselves. While etcd is away nothing changes but the trouble that is
/// told; an etcd that comes back empty withdraws everybody, which is a hint as ever.
pub fn watch(etcd: EtcdConfig) -> Changes {
    let (sender, receiver) = mpsc::channel(WAITING_CHANGES);
    let task = tokio::spawn(Watcher::new(etcd, RELIST, sender).run());
    Guarded::new(ReceiverStream::new(receiver), AbortOnDropHandle::new(task)).boxed()
}

struct Watcher {
    attempts: Attempts,
    prefix: String,
    relist: Duration,
    changes: mpsc::Sender<Change>,
    known: Set,
    /// Of the last list. Events up to it are older than `known`.
    revision: i64,
    /// Keys that were complained about, and their revision then.
    malformed: BTreeMap<Vec<u8>, i64>,
    trouble: Option<String>,
}

impl Watcher {
    fn new(etcd: EtcdConfig, relist: Duration, changes: mpsc::Sender<Change>) -> Self {
        Self {
            prefix: etcd.etcd_prefix.clone(),
            attempts: Attempts::new(etcd),
            relist,
            changes,
            known: Set::new(),
            revision: 0,
            malformed: BTreeMap::new(),
            trouble: None,
        }
    }

    async fn run(mut self) {
        loop {
            let Err(failure) = self.session().await;
            let wait = self.attempts.failed(&failure);
            self.trouble_is(self.attempts.trouble()).await;
            sleep(wait).await;
        }
    }

    /// From connecting until something goes wrong.
    async fn session(&mut self) -> Result<Infallible, Failure> {
        let mut client = self.attempts.client().await?;
        // What was wiped or restored counts anew.
        self.revision = 0;
        self.list(&mut client).await?;
        let events = self.open(&mut client, self.revision + 1).await?;
        self.attempts.succeeded();
        self.follow(&mut client, events).await
    }

    async fn follow(
        &mut self,
        client: &mut Client,
        mut events: WatchStream,
    ) -> Result<Infallible, Failure> {
        let mut relist = interval_at(Instant::now() + self.relist, self.relist);
        relist.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.say_if_empty().await;
            tokio::select! {
                message = events.message() => {
                    let message = message?.ok_or(Failure::Ended("watch"))?;
                    self.apply(&message).await?;
                }
                _ = relist.tick() => self.list(client).await?,
            }
        }
    }

    /// Makes `known` what etcd has.
    async fn list(&mut self, client: &mut Client) -> Result<(), Failure> {
        let prefix = GetOptions::new().with_prefix();
        let listed = within(ANSWER, kv(client).get(self.prefix.as_str(), Some(prefix))).await?;
        self.advance(listed.header().map_or(0, |header| header.revision()))?;
        let still_there = |key: &Vec<u8>| listed.kvs().iter().any(|kv| kv.key() == key);
        self.malformed.retain(|key, _| still_there(key));
        let candidates = listed.kvs().iter().filter_map(|kv| self.read(kv));
        let now: Set = candidates.map(|candidate| (candidate.id, candidate.address)).collect();
        for change in difference(&self.known, &now) {
            debug!(?change, "listed");
            self.tell(change).await;
        }
        self.known = now;
        Ok(())
    }

    /// Watches from `revision` on.
    async fn open(&self, client: &mut Client, revision: i64) -> Result<WatchStream, Failure> {
        let options = WatchOptions::new().with_prefix().with_start_revision(revision);
        let opened = within(ANSWER, async {
            let mut events = watches(client).watch(self.prefix.as_str(), Some(options)).await?;
            Ok((events.message().await?, events))
        });
        let (created, events) = opened.await?;
        let created = created.ok_or(Failure::Ended("watch"))?;
        check(&created)?;
        // The connection may have been made anew since the list.
        let now = created.header().map_or(0, |header| header.revision());
        if now < self.revision {
            return Err(Failure::WentBack { from: self.revision, to: now });
        }
        Ok(events)
    }

    async fn apply(&mut self, message: &WatchResponse) -> Result<(), Failure> {
        check(message)?;
        let listed = self.revision;
        let events = message.events().iter().filter_map(|event| event.kv());
        for kv in events.filter(|kv| kv.mod_revision() > listed) {
            let deleted = kv.create_revision() == 0;
            let candidate = if deleted { None } else { self.read(kv) };
            match (candidate, worker_record::worker(&self.prefix, kv.key())) {
                (Some(candidate), _) => {
                    debug!(worker = %candidate.id, address = candidate.address, "announced");
                    self.known.insert(candidate.id.clone(), candidate.address.clone());
                    // Also if nothing is new: it says that the worker is there now.
                    self.tell(Change::Insert(candidate)).await;
                }
                (None, Ok(worker)) => self.remove(worker).await,
                (None, Err(_)) => {}
            }
        }
        Ok(())
    }

    async fn remove(&mut self, worker: WorkerId) {
        if self.known.remove(&worker).is_some() {
            debug!(%worker, "gone");
            self.tell(Change::Remove(worker)).await;
        }
    }

    fn advance(&mut self, revision: i64) -> Result<(), Failure> {
        if revision < self.revision {
            return Err(Failure::WentBack { from: self.revision, to: revision });
        }
        self.revision = revision;
        Ok(())
    }

    /// The candidate of a key, or a complaint, once.
    fn read(&mut self, kv: &KeyValue) -> Option<Candidate> {
        match worker_record::read(&self.prefix, kv.key(), kv.value()) {
            Ok(candidate) => Some(candidate),
            Err(reason) => {
                let told = self.malformed.insert(kv.key().to_vec(), kv.mod_revision());
                if told != Some(kv.mod_revision()) {
                    let (key, reason) = (excerpt(kv.key()), excerpt(reason.to_string().as_bytes()));
                    warn!(%key, reason, "skipped what is not a worker");
                }
                None
            }
        }
    }

    /// An etcd without workers is trouble too, perhaps a wrong prefix.
    async fn say_if_empty(&mut self) {
        let empty = self.known.is_empty();
        let trouble =
            || format!("etcd {} has no key under {}", self.attempts.endpoint(), self.prefix);
        self.trouble_is(empty.then(trouble)).await;
    }

    async fn trouble_is(&mut self, trouble: Option<String>) {
        if self.trouble != trouble {
            self.trouble.clone_from(&trouble);
            self.tell(Change::SourceError(trouble)).await;
        }
    }

    async fn tell(&self, change: Change) {
        // Fails when nobody follows any more, and then this is about to be dropped.
        let _ = self.changes.send(change).await;
    }
}

/// Whether etcd goes on with the watch.
fn check(message: &WatchResponse) -> Result<(), Failure> {
    match message.canceled() {
        false => Ok(()),
        true if message.compact_revision() > 0 => Err(Failure::Compacted),
        true => {
            Err(Failure::Refused(format!("the watch was cancelled: {}", message.cancel_reason())))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::{super::server::Etcd, *};

    const PREFIX: &str = "/test/";
    const PATIENCE: Duration = Duration::from_secs(30);

    fn watcher(etcd: &Etcd, relist: Duration) -> (Watcher, mpsc::Receiver<Change>) {
        let (sender, receiver) = mpsc::channel(WAITING_CHANGES);
        let config = EtcdConfig::new(vec![etcd.url().parse().unwrap()], PREFIX);
        (Watcher::new(config, relist, sender), receiver)
    }

    /// A client, once etcd answers.
    async fn client(watcher: &Watcher) -> Client {
        let mut client = watcher.attempts.client().await.unwrap();
        let answered = async { while client.get("x", None).await.is_err() {} };
        tokio::time::timeout(PATIENCE, answered).await.unwrap();
        client
    }

    async fn announce(client: &mut Client, worker: &str) {
        client.put(format!("{PREFIX}{worker}"), r#"{"address": "h:1"}"#, None).await.unwrap();
    }

    async fn next(changes: &mut mpsc::Receiver<Change>) -> Option<Change> {
        tokio::time::timeout(PATIENCE, changes.recv()).await.unwrap()
    }

    fn inserted(worker: &str) -> Change {
        Change::Insert(Candidate { id: WorkerId::new(worker), address: "h:1".into() })
    }

    #[tokio::test]
    async fn a_revision_that_was_compacted_ends_the_session() {
        for etcd in Etcd::each() {
            let (mut watcher, _changes) = watcher(&etcd, RELIST);
            let mut client = client(&watcher).await;
            for worker in ["a", "b", "c"] {
                announce(&mut client, worker).await;
            }
            watcher.list(&mut client).await.unwrap();
            client.compact(watcher.revision, None).await.unwrap();
            let ended = async {
                // Some versions say it at once, others after they have opened the watch.
                let events = watcher.open(&mut client.clone(), 1).await?;
                watcher.follow(&mut client, events).await
            };
            let ended = tokio::time::timeout(PATIENCE, ended).await.unwrap();
            assert_eq!(ended, Err(Failure::Compacted));
        }
    }

    #[tokio::test]
    async fn a_list_finds_what_the_watch_has_lost() {
        for etcd in Etcd::each() {
            let (mut watcher, mut changes) = watcher(&etcd, Duration::from_millis(20));
            let mut client = client(&watcher).await;
            announce(&mut client, "a").await;
            watcher.list(&mut client).await.unwrap();
            assert_eq!(next(&mut changes).await, Some(inserted("a")));
            // A watch of something else: all of its events are lost.
            let lost = client.watch("/elsewhere", None).await.unwrap();
            let mut other = client.clone();
            let follow = tokio::spawn(async move { watcher.follow(&mut client, lost).await });
            announce(&mut other, "b").await;
            assert_eq!(next(&mut changes).await, Some(inserted("b")));
            other.delete(format!("{PREFIX}a"), None).await.unwrap();
            assert_eq!(next(&mut changes).await, Some(Change::Remove(WorkerId::new("a"))));
            follow.abort();
        }
    }
}

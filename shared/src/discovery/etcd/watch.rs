//! Discovery for routers: all workers under the prefix, and every change.

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
    failover::{Failover, kv, watches},
    session_error::{RESPONSE_TIMEOUT, SessionError, within},
    worker_record,
};
use crate::{
    discovery::{Candidate, CandidateSet, Change, Changes, WorkerId, difference},
    excerpt::excerpt,
    guarded::Guarded,
};

/// Interval of full lists, since watches of some versions of etcd lose events.
const RELIST_INTERVAL: Duration = Duration::from_secs(30);
/// Capacity of the channel of changes.
const CHANNEL_CAPACITY: usize = 64;

/// Watches the announced workers. While etcd is unavailable, only [`Change::SourceError`] is
/// reported. An etcd that comes back empty removes all workers, which is only a hint.
pub fn watch(etcd: EtcdConfig) -> Changes {
    let (sender, receiver) = mpsc::channel(CHANNEL_CAPACITY);
    let task = tokio::spawn(Watcher::new(etcd, RELIST_INTERVAL, sender).run());
    Guarded::new(ReceiverStream::new(receiver), AbortOnDropHandle::new(task)).boxed()
}

struct Watcher {
    failover: Failover,
    prefix: String,
    relist_interval: Duration,
    changes: mpsc::Sender<Change>,
    known: CandidateSet,
    /// Revision of the last list. Events up to it are already part of `known`.
    revision: i64,
    /// Malformed keys that were logged, with their revisions.
    malformed: BTreeMap<Vec<u8>, i64>,
    source_error: Option<String>,
}

impl Watcher {
    fn new(etcd: EtcdConfig, relist_interval: Duration, changes: mpsc::Sender<Change>) -> Self {
        Self {
            prefix: etcd.etcd_prefix.clone(),
            failover: Failover::new(etcd),
            relist_interval,
            changes,
            known: CandidateSet::new(),
            revision: 0,
            malformed: BTreeMap::new(),
            source_error: None,
        }
    }

    async fn run(mut self) {
        loop {
            let Err(error) = self.session().await;
            let delay = self.failover.failed(&error);
            self.report_error(self.failover.error_summary()).await;
            sleep(delay).await;
        }
    }

    /// Runs a session, from connecting to the first error.
    async fn session(&mut self) -> Result<Infallible, SessionError> {
        let mut client = self.failover.client().await?;
        // Revisions of an etcd that was wiped or restored start again.
        self.revision = 0;
        self.list(&mut client).await?;
        let events = self.open(&mut client, self.revision + 1).await?;
        self.failover.succeeded();
        self.follow(&mut client, events).await
    }

    async fn follow(
        &mut self,
        client: &mut Client,
        mut events: WatchStream,
    ) -> Result<Infallible, SessionError> {
        let mut relist = interval_at(Instant::now() + self.relist_interval, self.relist_interval);
        relist.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.report_if_empty().await;
            tokio::select! {
                message = events.message() => {
                    let message = message?.ok_or(SessionError::Ended("watch"))?;
                    self.apply(&message).await?;
                }
                _ = relist.tick() => self.list(client).await?,
            }
        }
    }

    /// Lists all keys, and updates `known`.
    async fn list(&mut self, client: &mut Client) -> Result<(), SessionError> {
        let prefix = GetOptions::new().with_prefix();
        let listed =
            within(RESPONSE_TIMEOUT, kv(client).get(self.prefix.as_str(), Some(prefix))).await?;
        self.advance(listed.header().map_or(0, |header| header.revision()))?;
        let is_listed = |key: &Vec<u8>| listed.kvs().iter().any(|kv| kv.key() == key);
        self.malformed.retain(|key, _| is_listed(key));
        let candidates = listed.kvs().iter().filter_map(|kv| self.parse(kv));
        let listed_set: CandidateSet =
            candidates.map(|candidate| (candidate.id, candidate.address)).collect();
        for change in difference(&self.known, &listed_set, true) {
            debug!(?change, "listed");
            self.send(change).await;
        }
        self.known = listed_set;
        Ok(())
    }

    /// Opens a watch that starts at `revision`.
    async fn open(&self, client: &mut Client, revision: i64) -> Result<WatchStream, SessionError> {
        let options = WatchOptions::new().with_prefix().with_start_revision(revision);
        let opened = within(RESPONSE_TIMEOUT, async {
            let mut events = watches(client).watch(self.prefix.as_str(), Some(options)).await?;
            Ok((events.message().await?, events))
        });
        let (created, events) = opened.await?;
        let created = created.ok_or(SessionError::Ended("watch"))?;
        check(&created)?;
        // The client may have reconnected since the list.
        let now = created.header().map_or(0, |header| header.revision());
        if now < self.revision {
            return Err(SessionError::RevisionDecreased { from: self.revision, to: now });
        }
        Ok(events)
    }

    async fn apply(&mut self, message: &WatchResponse) -> Result<(), SessionError> {
        check(message)?;
        let listed = self.revision;
        let events = message.events().iter().filter_map(|event| event.kv());
        for kv in events.filter(|kv| kv.mod_revision() > listed) {
            let deleted = kv.create_revision() == 0;
            let candidate = if deleted { None } else { self.parse(kv) };
            match (candidate, worker_record::worker_id(&self.prefix, kv.key())) {
                (Some(candidate), _) => {
                    debug!(worker = %candidate.id, address = candidate.address, "announced");
                    self.known.insert(candidate.id.clone(), candidate.address.clone());
                    // Sent even without a change, since it shows that the worker is alive now.
                    self.send(Change::Insert(candidate)).await;
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
            self.send(Change::Remove(worker)).await;
        }
    }

    fn advance(&mut self, revision: i64) -> Result<(), SessionError> {
        if revision < self.revision {
            return Err(SessionError::RevisionDecreased { from: self.revision, to: revision });
        }
        self.revision = revision;
        Ok(())
    }

    /// Returns the candidate of a key. Logs a malformed key once per revision.
    fn parse(&mut self, kv: &KeyValue) -> Option<Candidate> {
        match worker_record::parse_candidate(&self.prefix, kv.key(), kv.value()) {
            Ok(candidate) => Some(candidate),
            Err(reason) => {
                let logged = self.malformed.insert(kv.key().to_vec(), kv.mod_revision());
                if logged != Some(kv.mod_revision()) {
                    let (key, reason) = (excerpt(kv.key()), excerpt(reason.to_string().as_bytes()));
                    warn!(%key, reason, "ignored a key that is not a worker record");
                }
                None
            }
        }
    }

    /// An etcd without workers is reported as an error too, since the prefix may be wrong.
    async fn report_if_empty(&mut self) {
        let empty = self.known.is_empty();
        let error =
            || format!("etcd {} has no key under {}", self.failover.endpoint(), self.prefix);
        self.report_error(empty.then(error)).await;
    }

    async fn report_error(&mut self, error: Option<String>) {
        if self.source_error != error {
            self.source_error.clone_from(&error);
            self.send(Change::SourceError(error)).await;
        }
    }

    async fn send(&self, change: Change) {
        // Fails only if the receiver was dropped, after which this task is aborted.
        let _ = self.changes.send(change).await;
    }
}

/// Returns an error if etcd has cancelled the watch.
fn check(message: &WatchResponse) -> Result<(), SessionError> {
    match message.canceled() {
        false => Ok(()),
        true if message.compact_revision() > 0 => Err(SessionError::Compacted),
        true => Err(SessionError::Refused(format!(
            "the watch was cancelled: {}",
            message.cancel_reason()
        ))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::{super::server::Etcd, *};

    const PREFIX: &str = "/test/";
    const TEST_TIMEOUT: Duration = Duration::from_secs(30);

    fn watcher(etcd: &Etcd, relist: Duration) -> (Watcher, mpsc::Receiver<Change>) {
        let (sender, receiver) = mpsc::channel(CHANNEL_CAPACITY);
        let config = EtcdConfig::new(vec![etcd.url().parse().unwrap()], PREFIX);
        (Watcher::new(config, relist, sender), receiver)
    }

    /// Returns a client, once etcd responds.
    async fn client(watcher: &Watcher) -> Client {
        let mut client = watcher.failover.client().await.unwrap();
        let ready = async { while client.get("x", None).await.is_err() {} };
        tokio::time::timeout(TEST_TIMEOUT, ready).await.unwrap();
        client
    }

    async fn announce(client: &mut Client, worker: &str) {
        client.put(format!("{PREFIX}{worker}"), r#"{"address": "h:1"}"#, None).await.unwrap();
    }

    async fn next(changes: &mut mpsc::Receiver<Change>) -> Option<Change> {
        tokio::time::timeout(TEST_TIMEOUT, changes.recv()).await.unwrap()
    }

    fn inserted(worker: &str) -> Change {
        Change::Insert(Candidate::named(WorkerId::new(worker), "h:1".into()))
    }

    #[tokio::test]
    async fn a_compacted_revision_ends_the_session() {
        for etcd in Etcd::each() {
            let (mut watcher, _changes) = watcher(&etcd, RELIST_INTERVAL);
            let mut client = client(&watcher).await;
            for worker in ["a", "b", "c"] {
                announce(&mut client, worker).await;
            }
            watcher.list(&mut client).await.unwrap();
            client.compact(watcher.revision, None).await.unwrap();
            let ended = async {
                // Some versions report it immediately, others after the watch is open.
                let events = watcher.open(&mut client.clone(), 1).await?;
                watcher.follow(&mut client, events).await
            };
            let ended = tokio::time::timeout(TEST_TIMEOUT, ended).await.unwrap();
            assert_eq!(ended, Err(SessionError::Compacted));
        }
    }

    #[tokio::test]
    async fn a_list_recovers_events_that_the_watch_lost() {
        for etcd in Etcd::each() {
            let (mut watcher, mut changes) = watcher(&etcd, Duration::from_millis(20));
            let mut client = client(&watcher).await;
            announce(&mut client, "a").await;
            watcher.list(&mut client).await.unwrap();
            assert_eq!(next(&mut changes).await, Some(inserted("a")));
            // A watch of another prefix stands for one that lost all events.
            let lost = client.watch("/other", None).await.unwrap();
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

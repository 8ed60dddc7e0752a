//! A worker's side: one key, under a lease, for as long as the worker wants to be found.

use std::{convert::Infallible, time::Duration};

use etcd_client::{Client, Compare, CompareOp, Error, KeyValue, PutOptions, Txn, TxnOp};
use tokio::time::{sleep, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{debug, info, warn};

use super::{
    EtcdConfig, WorkerRecord,
    attempts::{Attempts, kv},
    excerpt::excerpt,
    failure::{ANSWER, Failure, KEEP_ALIVE, within},
};
use crate::discovery::{Address, WorkerId};

/// What etcd may hold up a worker that leaves. Its key then goes with the lease.
const WITHDRAWAL: Duration = Duration::from_secs(2);
/// Attempts to take the key while others write to it. After that the next sign of life tries again.
const RACES: usize = 3;

/// Keeps a worker announced. Dropping it ends that like a crash: the key stays until the lease has run out.
#[derive(Debug)]
pub struct Registration {
    leave: CancellationToken,
    task: AbortOnDropHandle<()>,
}

/// Announces a worker from now until [`Registration::withdraw`], or until `end`. etcd keeps the key for
/// `lease_ttl`, in whole seconds, after the last sign of life. Never fails: it tries until etcd is there, and
/// says in the log why it is not.
pub fn register(
    etcd: EtcdConfig,
    lease_ttl: Duration,
    worker: &WorkerId,
    record: &WorkerRecord,
    end: impl Future<Output = ()> + Send + 'static,
) -> Registration {
    let mut registrar = Registrar::new(etcd, lease_ttl, worker, record);
    let leave = CancellationToken::new();
    let left = leave.clone();
    let task = async move {
        tokio::select! {
            _ = registrar.keep() => {}
            () = left.cancelled() => {}
            () = end => {}
        }
        if timeout(WITHDRAWAL, registrar.revoke()).await.is_err() {
            warn!(key = registrar.key, "etcd does not answer: the key stays until its lease ends");
        }
    };
    Registration { leave, task: AbortOnDropHandle::new(tokio::spawn(task)) }
}

impl Registration {
    /// Takes the key back. When this returns, within 2 s, it is gone; or etcd does not answer, and the key goes
    /// when its lease has run out.
    pub async fn withdraw(self) {
        self.leave.cancel();
        // Fails if the task panicked, after which there is nothing left to do.
        let _ = self.task.await;
    }
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    id: i64,
    /// As etcd granted it; it has a minimum of its own.
    ttl: Duration,
}

struct Registrar {
    attempts: Attempts,
    key: String,
    value: String,
    address: Address,
    /// To ask for, in seconds.
    ttl: i64,
    /// Outlives a connection: a server that comes back may still know it.
    lease: Option<Lease>,
    /// The key was ours before.
    announced: bool,
    /// Somebody else has the key.
    rival: bool,
}

impl Registrar {
    fn new(
        etcd: EtcdConfig,
        lease_ttl: Duration,
        worker: &WorkerId,
        record: &WorkerRecord,
    ) -> Self {
        Self {
            key: format!("{}{worker}", etcd.etcd_prefix),
            attempts: Attempts::new(etcd),
            value: record.to_json(),
            address: record.address.clone(),
            ttl: i64::try_from(lease_ttl.as_secs()).unwrap_or(i64::MAX).max(1),
            lease: None,
            announced: false,
            rival: false,
        }
    }

    async fn keep(&mut self) -> Infallible {
        loop {
            let Err(failure) = self.session().await;
            if failure == Failure::LeaseLost {
                self.lease = None;
            }
            sleep(self.attempts.failed(&failure)).await;
        }
    }

    /// From connecting until something goes wrong.
    async fn session(&mut self) -> Result<Infallible, Failure> {
        let mut client = self.attempts.client().await?;
        let lease = self.lease(&mut client).await?;
        // Two of three signs of life may get lost, and there is time left to try another server.
        let (pause, patience) = (lease.ttl / 3, (lease.ttl / 2).min(ANSWER));
        let opened = within(patience, async {
            match client.lease_keep_alive(lease.id).await {
                Err(Error::LeaseKeepAliveError(_)) => Ok(None),
                opened => opened.map(Some),
            }
        });
        let (mut keeper, mut answers) = opened.await?.ok_or(Failure::LeaseLost)?;
        self.hold(&mut client, lease, patience).await?;
        self.attempts.succeeded();
        loop {
            tokio::select! {
                () = sleep(pause) => {}
                // Nothing was asked, so it is the end: noticed now, and not at the next sign of life.
                ended = answers.message() => {
                    ended?;
                    return Err(Failure::Ended(KEEP_ALIVE));
                }
            }
            keeper.keep_alive().await?;
            let alive = within(patience, answers.message()).await?;
            if alive.ok_or(Failure::Ended(KEEP_ALIVE))?.ttl() <= 0 {
                return Err(Failure::LeaseLost);
            }
            self.hold(&mut client, lease, patience).await?;
        }
    }

    /// The lease that we have, or a new one.
    async fn lease(&mut self, client: &mut Client) -> Result<Lease, Failure> {
        if let Some(lease) = self.lease {
            return Ok(lease);
        }
        let granted = within(ANSWER, client.lease_grant(self.ttl, None)).await?;
        let seconds = u64::try_from(granted.ttl()).unwrap_or(0).max(1);
        let lease = Lease { id: granted.id(), ttl: Duration::from_secs(seconds) };
        self.lease = Some(lease);
        Ok(lease)
    }

    /// Keeps the key ours, unless another worker holds it. A stranger may delete or overwrite the key while the
    /// lease lives on.
    async fn hold(
        &mut self,
        client: &mut Client,
        lease: Lease,
        patience: Duration,
    ) -> Result<(), Failure> {
        for _ in 0..RACES {
            let found = within(patience, kv(client).get(self.key.as_str(), None)).await?;
            let found = found.kvs().first();
            match found {
                Some(kv) if self.is_ours(kv, lease) => {
                    (self.announced, self.rival) = (true, false);
                    return Ok(());
                }
                // The first time it is what a life before this one left. Later it is a worker that came after us,
                // and two that take the key from each other in turns would be worse than one that is not found.
                Some(kv) if self.announced && self.is_rival(kv, lease) => {
                    self.warn_of_rival(kv);
                    return Ok(());
                }
                _ => {}
            }
            if self.put(client, lease, patience, found).await? {
                return Ok(());
            }
        }
        debug!(key = self.key, "the key changes all the time, trying again later");
        Ok(())
    }

    fn is_ours(&self, kv: &KeyValue, lease: Lease) -> bool {
        kv.lease() == lease.id && kv.value() == self.value.as_bytes()
    }

    /// Returns whether the key belongs to another worker: one that is alive, since a key goes with its lease, and
    /// that can be dialled at another address.
    fn is_rival(&self, kv: &KeyValue, lease: Lease) -> bool {
        let under_another_lease = kv.lease() != 0 && kv.lease() != lease.id;
        under_another_lease
            && WorkerRecord::from_json(kv.value())
                .is_ok_and(|record| record.address != self.address)
    }

    fn warn_of_rival(&mut self, theirs: &KeyValue) {
        if !self.rival {
            self.rival = true;
            let now = excerpt(theirs.value());
            warn!(key = self.key, %now, "another worker has this id; give each its own --worker-id");
        }
    }

    /// Writes the key, unless it is no longer as it was `found`. Returns whether it was written.
    async fn put(
        &mut self,
        client: &mut Client,
        lease: Lease,
        patience: Duration,
        found: Option<&KeyValue>,
    ) -> Result<bool, Failure> {
        let key = self.key.as_str();
        // etcd's revision of a key that is absent is 0.
        let revision = found.map_or(0, KeyValue::mod_revision);
        let options = PutOptions::new().with_lease(lease.id);
        let put = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, revision)])
            .and_then([TxnOp::put(key, self.value.as_str(), Some(options))]);
        if !within(patience, client.txn(put)).await?.succeeded() {
            return Ok(false);
        }
        if let Some(kv) = found.filter(|_| self.announced) {
            let (was, under) = (excerpt(kv.value()), kv.lease());
            warn!(key, %was, lease = under, "a stranger wrote to the key of this worker, which took it back");
        }
        (self.announced, self.rival) = (true, false);
        info!(etcd = self.attempts.endpoint(), key, ttl = ?lease.ttl, "announced");
        Ok(true)
    }

    /// Ends the lease, and with it the key.
    async fn revoke(&mut self) {
        let Some(lease) = self.lease else { return };
        for _ in 0..self.attempts.servers() {
            let revoked = async {
                let mut client = self.attempts.client().await?;
                within(ANSWER, client.lease_revoke(lease.id)).await
            };
            match revoked.await {
                Ok(_) | Err(Failure::LeaseLost) => {
                    info!(key = self.key, "withdrawn");
                    return;
                }
                Err(failure) => {
                    // The next one, without a pause: somebody waits.
                    self.attempts.failed(&failure);
                }
            }
        }
        warn!(key = self.key, "no etcd can be reached: the key stays until its lease ends");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use stoker_proto::v1::ModelInfo;

    use super::{super::server::Etcd, *};

    #[tokio::test]
    async fn a_worker_that_comes_between_read_and_write_is_not_overwritten() {
        for etcd in Etcd::each() {
            let config = EtcdConfig::new(vec![etcd.url().parse().unwrap()], "/w/");
            let record = WorkerRecord::new("h:1".parse().unwrap(), ModelInfo::default());
            let mut ours = Registrar::new(config, ANSWER, &WorkerId::new("a"), &record);
            let mut client = ours.attempts.client().await.unwrap();
            let up = async { while client.get("x", None).await.is_err() {} };
            timeout(6 * ANSWER, up).await.unwrap();
            let lease = ours.lease(&mut client).await.unwrap();

            let mut read: Option<KeyValue> = None;
            for other in [r#"{"address":"h:2"}"#, r#"{"address":"h:3"}"#] {
                client.put("/w/a", other, None).await.unwrap();
                let put = ours.put(&mut client, lease, ANSWER, read.as_ref()).await;
                assert_eq!(put, Ok(false), "{read:?} was read");
                read = client.get("/w/a", None).await.unwrap().kvs().first().cloned();
                assert_eq!(read.as_ref().unwrap().value(), other.as_bytes());
            }
            assert_eq!(ours.put(&mut client, lease, ANSWER, read.as_ref()).await, Ok(true));
            let now = client.get("/w/a", None).await.unwrap();
            assert!(ours.is_ours(&now.kvs()[0], lease));
        }
    }
}

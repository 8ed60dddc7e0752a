//! Registration of a worker: one key under a lease, for as long as the worker is to be found.

use std::{convert::Infallible, time::Duration};

use etcd_client::{Client, Compare, CompareOp, Error, KeyValue, PutOptions, Txn, TxnOp};
use tokio::time::{sleep, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{debug, info, warn};

use super::{
    EtcdConfig, WorkerRecord,
    failover::{Failover, kv},
    session_error::{KEEP_ALIVE, RESPONSE_TIMEOUT, SessionError, within},
};
use crate::{
    discovery::{Address, WorkerId},
    excerpt::excerpt,
};

/// Maximum time that a shutdown waits for etcd. After it, the key expires with its lease.
const WITHDRAWAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Attempts to write the key while other clients write to it. After these, the next keep-alive
/// retries.
const MAX_WRITE_ATTEMPTS: usize = 3;

/// Keeps a worker announced. After a drop, as after a crash, the key stays until the lease expires.
#[derive(Debug)]
pub struct Registration {
    cancel: CancellationToken,
    task: AbortOnDropHandle<()>,
}

/// Announces a worker until [`Registration::withdraw`] is called or `end` completes. etcd keeps the
/// key for `lease_ttl`, in whole seconds, after the last keep-alive. Never fails: it retries until
/// etcd is reachable, and logs why it is not.
pub fn register(
    etcd: EtcdConfig,
    lease_ttl: Duration,
    worker: &WorkerId,
    record: &WorkerRecord,
    end: impl Future<Output = ()> + Send + 'static,
) -> Registration {
    let mut registrar = Registrar::new(etcd, lease_ttl, worker, record);
    let cancel = CancellationToken::new();
    let cancelled = cancel.clone();
    let task = async move {
        tokio::select! {
            _ = registrar.run() => {}
            () = cancelled.cancelled() => {}
            () = end => {}
        }
        if timeout(WITHDRAWAL_TIMEOUT, registrar.revoke()).await.is_err() {
            warn!(
                key = registrar.key,
                "etcd does not respond: the key stays until its lease expires"
            );
        }
    };
    Registration { cancel, task: AbortOnDropHandle::new(tokio::spawn(task)) }
}

impl Registration {
    /// Withdraws the key. Returns within 2 s, when the key is deleted, or when etcd does not
    /// respond and the key is left to expire with its lease.
    pub async fn withdraw(self) {
        self.cancel.cancel();
        // Fails only if the task panicked, which needs no further cleanup.
        let _ = self.task.await;
    }
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    id: i64,
    /// The granted TTL, which may be longer than requested, since etcd has a minimum.
    ttl: Duration,
}

struct Registrar {
    failover: Failover,
    key: String,
    value: String,
    address: Address,
    /// Requested TTL, in seconds.
    ttl: i64,
    /// Outlives a connection, since a server that restarts may still have the lease.
    lease: Option<Lease>,
    /// Whether this worker has written the key before.
    announced: bool,
    /// Whether another worker with the same id holds the key.
    id_conflict: bool,
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
            failover: Failover::new(etcd),
            value: record.to_json(),
            address: record.address.clone(),
            ttl: i64::try_from(lease_ttl.as_secs()).unwrap_or(i64::MAX).max(1),
            lease: None,
            announced: false,
            id_conflict: false,
        }
    }

    async fn run(&mut self) -> Infallible {
        loop {
            let Err(error) = self.session().await;
            if error == SessionError::LeaseLost {
                self.lease = None;
            }
            sleep(self.failover.failed(&error)).await;
        }
    }

    /// Runs a session, from connecting to the first error.
    async fn session(&mut self) -> Result<Infallible, SessionError> {
        let mut client = self.failover.client().await?;
        let lease = self.lease(&mut client).await?;
        // Two of three keep-alives may fail, and there is still time to try another server.
        let (interval, limit) = (lease.ttl / 3, (lease.ttl / 2).min(RESPONSE_TIMEOUT));
        let opened = within(limit, async {
            match client.lease_keep_alive(lease.id).await {
                Err(Error::LeaseKeepAliveError(_)) => Ok(None),
                opened => opened.map(Some),
            }
        });
        let (mut keeper, mut responses) = opened.await?.ok_or(SessionError::LeaseLost)?;
        self.ensure_key(&mut client, lease, limit).await?;
        self.failover.succeeded();
        loop {
            tokio::select! {
                () = sleep(interval) => {}
                // A message without a request means that the stream ended. It is handled now, and
                // not only at the next keep-alive.
                ended = responses.message() => {
                    ended?;
                    return Err(SessionError::Ended(KEEP_ALIVE));
                }
            }
            keeper.keep_alive().await?;
            let alive = within(limit, responses.message()).await?;
            if alive.ok_or(SessionError::Ended(KEEP_ALIVE))?.ttl() <= 0 {
                return Err(SessionError::LeaseLost);
            }
            self.ensure_key(&mut client, lease, limit).await?;
        }
    }

    /// Returns the existing lease, or a new one.
    async fn lease(&mut self, client: &mut Client) -> Result<Lease, SessionError> {
        if let Some(lease) = self.lease {
            return Ok(lease);
        }
        let granted = within(RESPONSE_TIMEOUT, client.lease_grant(self.ttl, None)).await?;
        let seconds = u64::try_from(granted.ttl()).unwrap_or(0).max(1);
        let lease = Lease { id: granted.id(), ttl: Duration::from_secs(seconds) };
        self.lease = Some(lease);
        Ok(lease)
    }

    /// Writes the key if it is not as this worker wrote it, unless another worker holds it. Another
    /// client may delete or overwrite the key while the lease is alive.
    async fn ensure_key(
        &mut self,
        client: &mut Client,
        lease: Lease,
        limit: Duration,
    ) -> Result<(), SessionError> {
        for _ in 0..MAX_WRITE_ATTEMPTS {
            let found = within(limit, kv(client).get(self.key.as_str(), None)).await?;
            let found = found.kvs().first();
            match found {
                Some(kv) if self.is_own(kv, lease) => {
                    (self.announced, self.id_conflict) = (true, false);
                    return Ok(());
                }
                // At the first write, the key is from an earlier process of this worker. Later, it
                // is from a worker that started after this one. Two workers that overwrite each
                // other repeatedly would be worse than one that is not found.
                Some(kv) if self.announced && self.is_conflict(kv, lease) => {
                    self.warn_of_conflict(kv);
                    return Ok(());
                }
                _ => {}
            }
            if self.put(client, lease, limit, found).await? {
                return Ok(());
            }
        }
        debug!(key = self.key, "the key changes continuously, retrying later");
        Ok(())
    }

    fn is_own(&self, kv: &KeyValue, lease: Lease) -> bool {
        kv.lease() == lease.id && kv.value() == self.value.as_bytes()
    }

    /// Returns whether the key belongs to another live worker: one with its own lease, since a key
    /// expires with its lease, and with a valid address other than that of this worker.
    fn is_conflict(&self, kv: &KeyValue, lease: Lease) -> bool {
        let has_other_lease = kv.lease() != 0 && kv.lease() != lease.id;
        has_other_lease
            && WorkerRecord::from_json(kv.value())
                .is_ok_and(|record| record.address != self.address)
    }

    fn warn_of_conflict(&mut self, other: &KeyValue) {
        if !self.id_conflict {
            self.id_conflict = true;
            let value = excerpt(other.value());
            warn!(key = self.key, %value, "another worker has this id; give each worker its own --worker-id");
        }
    }

    /// Writes the key, unless it has changed since it was `found`. Returns whether it was written.
    async fn put(
        &mut self,
        client: &mut Client,
        lease: Lease,
        limit: Duration,
        found: Option<&KeyValue>,
    ) -> Result<bool, SessionError> {
        let key = self.key.as_str();
        // The revision of an absent key is 0.
        let revision = found.map_or(0, KeyValue::mod_revision);
        let options = PutOptions::new().with_lease(lease.id);
        let put = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, revision)])
            .and_then([TxnOp::put(key, self.value.as_str(), Some(options))]);
        if !within(limit, client.txn(put)).await?.succeeded() {
            return Ok(false);
        }
        if let Some(kv) = found.filter(|_| self.announced) {
            let (value, other_lease) = (excerpt(kv.value()), kv.lease());
            warn!(key, %value, lease = other_lease, "another client overwrote the key of this worker; it was restored");
        }
        (self.announced, self.id_conflict) = (true, false);
        info!(etcd = self.failover.endpoint(), key, ttl = ?lease.ttl, "announced");
        Ok(true)
    }

    /// Revokes the lease, which deletes the key.
    async fn revoke(&mut self) {
        self.failover.ended();
        let Some(lease) = self.lease else { return };
        for _ in 0..self.failover.servers() {
            let revoked = async {
                let mut client = self.failover.client().await?;
                within(RESPONSE_TIMEOUT, client.lease_revoke(lease.id)).await
            };
            match revoked.await {
                Ok(_) | Err(SessionError::LeaseLost) => {
                    info!(key = self.key, "withdrawn");
                    return;
                }
                Err(error) => {
                    // Tries the next server without a delay, since the shutdown waits for this.
                    self.failover.failed(&error);
                }
            }
        }
        warn!(key = self.key, "no etcd can be reached: the key stays until its lease expires");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use stoker_proto::v1::ModelInfo;

    use super::{super::server::Etcd, *};

    #[tokio::test]
    async fn a_key_that_changes_between_read_and_write_is_not_overwritten() {
        for etcd in Etcd::each() {
            let config = EtcdConfig::new(vec![etcd.url().parse().unwrap()], "/w/");
            let record = WorkerRecord::new("h:1".parse().unwrap(), ModelInfo::default());
            let mut registrar =
                Registrar::new(config, RESPONSE_TIMEOUT, &WorkerId::new("a"), &record);
            let mut client = registrar.failover.client().await.unwrap();
            let up = async { while client.get("x", None).await.is_err() {} };
            timeout(6 * RESPONSE_TIMEOUT, up).await.unwrap();
            let lease = registrar.lease(&mut client).await.unwrap();

            let mut read: Option<KeyValue> = None;
            for other in [r#"{"address":"h:2"}"#, r#"{"address":"h:3"}"#] {
                client.put("/w/a", other, None).await.unwrap();
                let put = registrar.put(&mut client, lease, RESPONSE_TIMEOUT, read.as_ref()).await;
                assert_eq!(put, Ok(false), "{read:?} was read");
                read = client.get("/w/a", None).await.unwrap().kvs().first().cloned();
                assert_eq!(read.as_ref().unwrap().value(), other.as_bytes());
            }
            assert_eq!(
                registrar.put(&mut client, lease, RESPONSE_TIMEOUT, read.as_ref()).await,
                Ok(true)
            );
            let now = client.get("/w/a", None).await.unwrap();
            assert!(registrar.is_own(&now.kvs()[0], lease));
        }
    }
}

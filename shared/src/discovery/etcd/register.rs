//! A worker's side: one key, under a lease, for as long as the worker wants to be found.

use std::{convert::Infallible, time::Duration};

use etcd_client::{Client, Error, PutOptions};
use tokio::time::{sleep, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{info, warn};

use super::{
    EtcdConfig, Record,
    attempts::Attempts,
    failure::{ANSWER, Failure, KEEP_ALIVE, within},
};
use crate::discovery::WorkerId;

/// What etcd may hold up a worker that leaves. Its key then goes with the lease.
const WITHDRAWAL: Duration = Duration::from_secs(2);

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
    record: &Record,
    end: impl Future<Output = ()> + Send + 'static,
) -> Registration {
    let mut registrar = Registrar {
        attempts: Attempts::new(etcd.etcd),
        key: format!("{}{worker}", etcd.etcd_prefix),
        value: record.to_json(),
        ttl: i64::try_from(lease_ttl.as_secs()).unwrap_or(i64::MAX).max(1),
        lease: None,
        announced: false,
        rival: false,
    };
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

    /// Sees to it that the key is there. A lease may live on without its key, if somebody deletes the key.
    async fn hold(
        &mut self,
        client: &mut Client,
        lease: Lease,
        patience: Duration,
    ) -> Result<(), Failure> {
        let found = within(patience, client.get(self.key.as_str(), None)).await?;
        match found.kvs().first() {
            Some(ours) if ours.lease() == lease.id => self.rival = false,
            // The first time it is what a life before this one left. Later it is somebody who came after us, and
            // two who take it from each other in turns would be worse than one who is not found.
            Some(theirs) if self.announced => {
                if !self.rival {
                    self.rival = true;
                    let now = String::from_utf8_lossy(theirs.value());
                    warn!(key = self.key, %now, "another worker has this id; give each its own --worker-id");
                }
            }
            _ => {
                let options = PutOptions::new().with_lease(lease.id);
                let put = client.put(self.key.as_str(), self.value.as_str(), Some(options));
                within(patience, put).await?;
                (self.announced, self.rival) = (true, false);
                info!(etcd = self.attempts.endpoint(), key = self.key, ttl = ?lease.ttl, "announced");
            }
        }
        Ok(())
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

//! Task of one candidate: connects, requests the model info, and watches the load until the
//! connection is lost.

use std::{convert::Infallible, mem, pin::pin, sync::Arc, time::Duration};

use stoker_proto::v1::{
    GetModelInfoRequest, Load, ModelInfo, WatchLoadRequest, control_client::ControlClient,
};
use stoker_shared::{
    ServiceError,
    backoff::Backoff,
    discovery::Candidate,
    error::{is_stoker_status, quoted, root_cause},
    tls::ClientTls,
    validate,
};
use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};
use tonic::{Status, Streaming, transport::Channel};
use tracing::{debug, info, warn};

use super::{
    State, StateReport,
    channel::connect,
    health::Health,
    liveness::{Liveness, ProgressMonitor},
    outstanding::Outstanding,
    worker::Worker,
};

/// Timeout of a control call, which needs no engine work.
const RPC_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time between two load reports. Workers send one at least every second.
const LOAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum length of an instance id, in bytes.
const MAX_INSTANCE_ID: usize = 64;
/// Error for a candidate that is not a worker.
const IS_A_ROUTER: &str = "it is a router, not a worker: name the workers behind it";

/// Connects to `candidate` again and again until aborted, and reports its state. The worker is
/// marked as stalled after `stall_timeout` without progress. While it is unusable, notifying
/// `retry` ends the backoff.
pub(super) async fn follow(
    candidate: Candidate,
    generation: u64,
    stall_timeout: Duration,
    tls: Option<ClientTls>,
    retry: Arc<Notify>,
    reports: mpsc::Sender<StateReport>,
    review: Arc<Notify>,
) {
    let mut follower = Follower {
        candidate,
        generation,
        reports,
        stall_timeout,
        tls,
        outstanding: Arc::default(),
        health: Arc::new(Health::new(Arc::clone(&review))),
        review,
        liveness: Arc::default(),
        last: None,
        backoff: Backoff::default(),
        log_failure: true,
    };
    loop {
        let Err(reason) = follower.session().await;
        let worker = &follower.candidate.id;
        // Repeated failures are logged at debug level.
        if mem::take(&mut follower.log_failure) {
            warn!(%worker, reason, "not usable, retrying");
            follower.health.failed(&reason);
        } else {
            debug!(%worker, reason, "still not usable");
        }
        let last = follower.last.clone();
        follower.report(State::Gone { reason, last }).await;
        tokio::select! {
            () = tokio::time::sleep(follower.backoff.next_delay()) => {}
            () = retry.notified() => follower.backoff = Backoff::default(),
        }
    }
}

struct Follower {
    candidate: Candidate,
    generation: u64,
    reports: mpsc::Sender<StateReport>,
    stall_timeout: Duration,
    tls: Option<ClientTls>,
    /// Notified when the worker's health needs a review.
    review: Arc<Notify>,
    /// State of the worker process. It outlives a connection, since streams of the last one may
    /// still run.
    outstanding: Arc<Outstanding>,
    liveness: Arc<Liveness>,
    health: Arc<Health>,
    /// The worker when it was last usable.
    last: Option<Arc<Worker>>,
    backoff: Backoff,
    /// Whether to log the next failure as a warning: the worker was usable since the last one.
    log_failure: bool,
}

impl Follower {
    /// Connects, and runs until the connection is unusable. Returns the reason.
    async fn session(&mut self) -> Result<Infallible, String> {
        let channel = connect(&self.candidate.address, self.tls.as_ref()).await;
        let channel = channel.map_err(|error| root_cause(&error))?;
        let mut control = ControlClient::new(channel.clone());
        let info = model_info(&mut control).await?;
        self.on_model_info(&info);
        let loads = unary(control.watch_load(WatchLoadRequest::default())).await;
        let mut loads = loads.map_err(|status| cause(&status))?;
        let mut current: Option<(Arc<Worker>, bool)> = None;
        let mut progress = ProgressMonitor::new(self.stall_timeout);
        loop {
            let load = self
                .next_load(&mut loads, &mut progress)
                .await?
                .ok_or("the worker ended its load stream")?;
            if progress.on_load(&load) && self.liveness.set_stalled(false) {
                info!(worker = %self.candidate.id, "makes progress again");
            }
            match &current {
                Some((worker, draining)) if *draining == load.draining => worker.set_load(load),
                _ => {
                    let worker = self.on_usable(&channel, &info, load).await;
                    current = Some((worker, load.draining));
                }
            }
        }
    }

    /// Resets the worker's state if the address leads to another process than before.
    fn on_model_info(&mut self, info: &ModelInfo) {
        let other = |last: &Arc<Worker>| last.info.instance_id != info.instance_id;
        if self.last.as_ref().is_some_and(other) {
            let (worker, instance) = (&self.candidate.id, &info.instance_id);
            info!(%worker, instance, "the address leads to another process");
            (self.outstanding, self.liveness) = Default::default();
            self.health = Arc::new(Health::new(Arc::clone(&self.review)));
            self.last = None;
        }
    }

    /// Returns the next load report. Marks the worker as stalled meanwhile if it makes no progress.
    async fn next_load(
        &self,
        loads: &mut Streaming<Load>,
        progress: &mut ProgressMonitor,
    ) -> Result<Option<Load>, String> {
        let mut next = pin!(timeout(LOAD_TIMEOUT, loads.message()));
        let received = tokio::select! {
            biased;
            received = &mut next => received,
            () = progress.stalled(), if !self.liveness.is_stalled() => {
                if self.liveness.set_stalled(true) {
                    let worker = &self.candidate.id;
                    warn!(%worker, stall_timeout = ?self.stall_timeout, "stalled");
                }
                next.await
            }
        };
        received
            .map_err(|_| format!("no load report for {} s", LOAD_TIMEOUT.as_secs()))?
            .map_err(|status| cause(&status))
    }

    /// Reports that the worker is usable or draining.
    async fn on_usable(&mut self, channel: &Channel, info: &ModelInfo, load: Load) -> Arc<Worker> {
        let worker = Arc::new(Worker::new(
            self.candidate.id.clone(),
            channel.clone(),
            info.clone(),
            Arc::clone(&self.outstanding),
            Arc::clone(&self.liveness),
            Arc::clone(&self.health),
        ));
        worker.set_load(load);
        info!(worker = %worker.id, model = info.model, draining = load.draining, "usable");
        self.last = Some(Arc::clone(&worker));
        self.backoff = Backoff::default();
        self.log_failure = true;
        self.report(if load.draining {
            State::Draining(Arc::clone(&worker))
        } else {
            State::Live(Arc::clone(&worker))
        })
        .await;
        worker
    }

    async fn report(&self, state: State) {
        let report =
            StateReport { id: self.candidate.id.clone(), generation: self.generation, state };
        // The manager aborts this task before it drops the receiver.
        let _ = self.reports.send(report).await;
    }
}

/// Requests the model info and verifies that the peer is a worker.
async fn model_info(control: &mut ControlClient<Channel>) -> Result<ModelInfo, String> {
    let info = unary(control.get_model_info(GetModelInfoRequest::default())).await;
    let info = info.map_err(|status| match ServiceError::from(&status) {
        // A worker that serves calls always has a model.
        ServiceError::Unavailable { .. } if is_stoker_status(&status) => IS_A_ROUTER.to_owned(),
        _ => cause(&status),
    })?;
    if info.worker.is_empty() {
        return Err(IS_A_ROUTER.into());
    }
    for (field, name) in [("model", &info.model), ("worker", &info.worker)] {
        validate::name(name).map_err(|why| format!("its {field} {why}"))?;
    }
    let size = info.instance_id.len();
    if size > MAX_INSTANCE_ID {
        return Err(format!("its instance_id has {size} bytes; at most {MAX_INSTANCE_ID}"));
    }
    Ok(info)
}

async fn unary<T>(
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match timeout(RPC_TIMEOUT, call).await {
        Ok(response) => Ok(response?.into_inner()),
        Err(_) => {
            let seconds = RPC_TIMEOUT.as_secs();
            Err(Status::deadline_exceeded(format!("no response within {seconds} s")))
        }
    }
}

/// Returns a short reason for `status`, with the peer's message quoted and truncated.
fn cause(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => root_cause(source),
        None => format!("{}: {}", status.code(), quoted(status.message())),
    }
}

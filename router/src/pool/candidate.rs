//! One candidate: connects, asks what it serves, and watches its load for as long as it lives.

use std::{convert::Infallible, mem, pin::pin, sync::Arc, time::Duration};

use stoker_proto::v1::{
    GetModelInfoRequest, Load, ModelInfo, WatchLoadRequest, control_client::ControlClient,
};
use stoker_shared::{
    ServiceError,
    backoff::Backoff,
    discovery::Candidate,
    error::{is_ours, quoted, root_cause},
    validate,
};
use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};
use tonic::{Status, Streaming, transport::Channel};
use tracing::{debug, info, warn};

use super::{
    Report, State,
    channel::connect,
    health::Health,
    liveness::{Liveness, ProgressMonitor},
    reservation::Outstanding,
    worker::Worker,
};

/// For a question that needs no work.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Load comes at least once a second: this long without any means trouble.
const SILENCE: Duration = Duration::from_secs(5);
/// Characters of an instance id.
const MAX_INSTANCE_ID: usize = 64;
/// Why a candidate is refused that is no worker.
const A_ROUTER: &str = "it is a router, not a worker: name the workers behind it";

/// Looks after `candidate` until it is aborted, and says after `patience` that it stands still. While it is of
/// no use, `retry` asks for another try at once.
pub(super) async fn follow(
    candidate: Candidate,
    generation: u64,
    patience: Duration,
    retry: Arc<Notify>,
    reports: mpsc::Sender<Report>,
    review: Arc<Notify>,
) {
    let mut follower = Follower {
        candidate,
        generation,
        reports,
        patience,
        outstanding: Arc::default(),
        health: Arc::new(Health::new(Arc::clone(&review))),
        review,
        liveness: Arc::default(),
        last: None,
        backoff: Backoff::default(),
        news: true,
    };
    loop {
        let Err(reason) = follower.session().await;
        let worker = &follower.candidate.id;
        // A worker that stays away is news once.
        if mem::take(&mut follower.news) {
            warn!(%worker, reason, "not usable, trying again");
            follower.health.failed(&reason);
        } else {
            debug!(%worker, reason, "still not usable");
        }
        let last = follower.last.clone();
        follower.report(State::Gone { reason, last }).await;
        tokio::select! {
            () = tokio::time::sleep(follower.backoff.next_wait()) => {}
            () = retry.notified() => follower.backoff = Backoff::default(),
        }
    }
}

struct Follower {
    candidate: Candidate,
    generation: u64,
    reports: mpsc::Sender<Report>,
    patience: Duration,
    /// What a worker's health has to tell goes here.
    review: Arc<Notify>,
    /// These outlive a connection, since streams of the last one may still run, but not the process.
    outstanding: Arc<Outstanding>,
    liveness: Arc<Liveness>,
    health: Arc<Health>,
    /// The worker as it was when it was last usable.
    last: Option<Arc<Worker>>,
    backoff: Backoff,
    /// It was usable since its last trouble was told.
    news: bool,
}

impl Follower {
    /// From connecting until the connection is of no use any more, and why.
    async fn session(&mut self) -> Result<Infallible, String> {
        let channel = connect(&self.candidate.address).await.map_err(|error| root_cause(&error))?;
        let mut control = ControlClient::new(channel.clone());
        let info = model_info(&mut control).await?;
        self.meet(&info);
        let loads = answer(control.watch_load(WatchLoadRequest::default())).await;
        let mut loads = loads.map_err(|status| cause(&status))?;
        let mut current: Option<(Arc<Worker>, bool)> = None;
        let mut pulse = ProgressMonitor::new(self.patience);
        loop {
            let load = self
                .report_of(&mut loads, &mut pulse)
                .await?
                .ok_or("it ended the report of its load")?;
            if pulse.heard(&load) && self.liveness.set_stalled(false) {
                info!(worker = %self.candidate.id, "moves again");
            }
            match &current {
                Some((worker, draining)) if *draining == load.draining => worker.set_load(load),
                _ => {
                    let worker = self.usable(&channel, &info, load).await;
                    current = Some((worker, load.draining));
                }
            }
        }
    }

    /// Starts anew where another process is found than the last time.
    fn meet(&mut self, info: &ModelInfo) {
        let other = |last: &Arc<Worker>| last.info.instance_id != info.instance_id;
        if self.last.as_ref().is_some_and(other) {
            info!(worker = %self.candidate.id, instance = info.instance_id, "another process");
            (self.outstanding, self.liveness) = Default::default();
            self.health = Arc::new(Health::new(Arc::clone(&self.review)));
            self.last = None;
        }
    }

    /// The next report of its load. Says meanwhile if the worker stands still.
    async fn report_of(
        &self,
        loads: &mut Streaming<Load>,
        pulse: &mut ProgressMonitor,
    ) -> Result<Option<Load>, String> {
        let mut next = pin!(timeout(SILENCE, loads.message()));
        let said = tokio::select! {
            biased;
            said = &mut next => said,
            () = pulse.stops(), if !self.liveness.is_stalled() => {
                if self.liveness.set_stalled(true) {
                    warn!(worker = %self.candidate.id, patience = ?self.patience, "stands still");
                }
                next.await
            }
        };
        said.map_err(|_| format!("no word about its load for {} s", SILENCE.as_secs()))?
            .map_err(|status| cause(&status))
    }

    /// Tells that the worker can be used, or that it drains.
    async fn usable(&mut self, channel: &Channel, info: &ModelInfo, load: Load) -> Arc<Worker> {
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
        self.news = true;
        self.report(if load.draining {
            State::Draining(Arc::clone(&worker))
        } else {
            State::Live(Arc::clone(&worker))
        })
        .await;
        worker
    }

    async fn report(&self, state: State) {
        let report = Report { id: self.candidate.id.clone(), generation: self.generation, state };
        // The manager ends its tasks before it ends itself.
        let _ = self.reports.send(report).await;
    }
}

/// What the worker says that it is, if it is one.
async fn model_info(control: &mut ControlClient<Channel>) -> Result<ModelInfo, String> {
    let info = answer(control.get_model_info(GetModelInfoRequest::default())).await;
    let info = info.map_err(|status| match ServiceError::from(&status) {
        // A worker has its model for as long as it answers at all.
        ServiceError::Unavailable { .. } if is_ours(&status) => A_ROUTER.to_owned(),
        _ => cause(&status),
    })?;
    if info.worker.is_empty() {
        return Err(A_ROUTER.into());
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

async fn answer<T>(
    question: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match timeout(ANSWER_TIMEOUT, question).await {
        Ok(answered) => Ok(answered?.into_inner()),
        Err(_) => {
            let seconds = ANSWER_TIMEOUT.as_secs();
            Err(Status::deadline_exceeded(format!("no answer within {seconds} s")))
        }
    }
}

/// Why a worker is of no use, in few words, whatever its own are.
fn cause(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => root_cause(source),
        None => format!("{}: {}", status.code(), quoted(status.message())),
    }
}

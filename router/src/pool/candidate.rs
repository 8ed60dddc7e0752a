//! One candidate: connects, asks what it serves, and watches its load for as long as it lives.

use std::{convert::Infallible, mem, pin::pin, sync::Arc, time::Duration};

use stoker_proto::v1::{
    GetModelInfoRequest, Load, ModelInfo, WatchLoadRequest, control_client::ControlClient,
};
use stoker_shared::{backoff::Backoff, discovery::Candidate, error::root_cause};
use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};
use tonic::{Streaming, transport::Channel};
use tracing::{debug, info, warn};

use super::{
    Report, State,
    channel::connect,
    health::Health,
    life::{Life, Pulse},
    reservation::Outstanding,
    worker::Worker,
};

/// For a question that needs no work.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Load comes at least once a second: this long without any means trouble.
const SILENCE: Duration = Duration::from_secs(5);

/// Looks after `candidate` until it is aborted, and says after `patience` that it stands still. While it is of
/// no use, `retry` asks for another try at once.
pub(super) async fn follow(
    candidate: Candidate,
    generation: u64,
    patience: Duration,
    retry: Arc<Notify>,
    reports: mpsc::Sender<Report>,
    health: Health,
) {
    let mut follower = Follower {
        candidate,
        generation,
        reports,
        patience,
        outstanding: Arc::default(),
        health: Arc::new(health),
        life: Arc::default(),
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
    /// These outlive a connection, since streams of the last one may still run.
    outstanding: Arc<Outstanding>,
    life: Arc<Life>,
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
        let info = answer(control.get_model_info(GetModelInfoRequest::default())).await?;
        let mut loads = answer(control.watch_load(WatchLoadRequest::default())).await?;
        let mut current: Option<(Arc<Worker>, bool)> = None;
        let mut pulse = Pulse::new(self.patience);
        loop {
            let load = self
                .report_of(&mut loads, &mut pulse)
                .await?
                .ok_or("it ended the report of its load")?;
            if pulse.heard(&load) && self.life.set_standing(false) {
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

    /// The next report of its load. Says meanwhile if the worker stands still.
    async fn report_of(
        &self,
        loads: &mut Streaming<Load>,
        pulse: &mut Pulse,
    ) -> Result<Option<Load>, String> {
        let mut next = pin!(timeout(SILENCE, loads.message()));
        let said = tokio::select! {
            biased;
            said = &mut next => said,
            () = pulse.stops(), if !self.life.is_standing() => {
                if self.life.set_standing(true) {
                    warn!(worker = %self.candidate.id, patience = ?self.patience, "stands still");
                }
                next.await
            }
        };
        said.map_err(|_| format!("no word about its load for {} s", SILENCE.as_secs()))?
            .map_err(|status| status_cause(&status))
    }

    /// Tells that the worker can be used, or that it drains.
    async fn usable(&mut self, channel: &Channel, info: &ModelInfo, load: Load) -> Arc<Worker> {
        let worker = Arc::new(Worker::new(
            self.candidate.id.clone(),
            channel.clone(),
            info.clone(),
            Arc::clone(&self.outstanding),
            Arc::clone(&self.life),
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

async fn answer<T>(
    question: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, String> {
    match timeout(ANSWER_TIMEOUT, question).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(status_cause(&status)),
        Err(_) => Err(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())),
    }
}

fn status_cause(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(cause) => root_cause(cause),
        None => format!("{}: {}", status.code(), status.message()),
    }
}

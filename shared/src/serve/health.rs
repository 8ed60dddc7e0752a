//! Whether a process takes requests: one state, that gRPC health and the probes over HTTP tell.

use std::sync::Arc;

use tokio::sync::{Mutex, watch};
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health, HealthServer},
    server::HealthReporter,
};

/// Whether a process takes requests, else why not.
pub type Readiness = watch::Receiver<Result<(), String>>;

/// The health of a listener: `""` and every service there go up and down together.
#[derive(Clone)]
pub struct HealthState {
    reporter: HealthReporter,
    services: &'static [&'static str],
    readiness: watch::Sender<Result<(), String>>,
    /// Held while both are changed, so that they agree.
    changing: Arc<Mutex<()>>,
}

impl HealthState {
    /// A reporter for `services`, and its own service. Every name is registered now, since tonic-health's `Watch` answers
    /// NOT_FOUND to a name that it learns later.
    pub async fn new(services: &'static [&'static str]) -> (Self, HealthServer<impl Health>) {
        let (reporter, service) = tonic_health::server::health_reporter();
        let (readiness, _) = watch::channel(Err("starting".to_owned()));
        let state = Self { reporter, services, readiness, changing: Arc::default() };
        state.report(ServingStatus::NotServing).await;
        (state, service)
    }

    /// Tells probes and watchers that new calls are welcome.
    pub async fn set_serving(&self) {
        self.set(Ok(())).await;
    }

    /// Tells probes and watchers that new calls are not welcome, and probes over HTTP why.
    pub async fn set_not_serving(&self, reason: impl Into<String>) {
        self.set(Err(reason.into())).await;
    }

    /// What probes report, and every change of it.
    pub fn readiness(&self) -> Readiness {
        self.readiness.subscribe()
    }

    /// Ends every `Watch`, which would keep its connection open for ever.
    pub async fn end_watches(&self) {
        let mut reporter = self.reporter.clone();
        for name in self.services.iter().copied().chain([""]) {
            reporter.clear_service_status(name).await;
        }
    }

    async fn set(&self, now: Result<(), String>) {
        let _changing = self.changing.lock().await;
        let serving = now.is_ok();
        let before = self.readiness.send_replace(now);
        // gRPC health has no reasons: a new one alone changes nothing for its watchers.
        if before.is_ok() != serving {
            let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
            self.report(status).await;
        }
    }

    async fn report(&self, status: ServingStatus) {
        for name in self.services.iter().copied().chain([""]) {
            self.reporter.set_service_status(name, status).await;
        }
    }
}

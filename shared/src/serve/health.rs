//! Readiness of a process: one state, reported by gRPC health and by HTTP probes.

use std::sync::Arc;

use tokio::sync::{Mutex, watch};
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health, HealthServer},
    server::HealthReporter,
};

/// Whether a process accepts requests, or why not.
pub type Readiness = watch::Receiver<Result<(), String>>;

/// The health of a listener. `""` and all services of the listener always have the same status.
#[derive(Clone)]
pub struct HealthState {
    reporter: HealthReporter,
    services: &'static [&'static str],
    readiness: watch::Sender<Result<(), String>>,
    /// Held while both are updated, so that they agree.
    update: Arc<Mutex<()>>,
}

impl HealthState {
    /// Returns a state for `services`, and the health service. Every name is registered now, since
    /// `Watch` of tonic-health returns NOT_FOUND for a name that is registered later.
    pub async fn new(services: &'static [&'static str]) -> (Self, HealthServer<impl Health>) {
        let (reporter, service) = tonic_health::server::health_reporter();
        let (readiness, _) = watch::channel(Err("starting".to_owned()));
        let state = Self { reporter, services, readiness, update: Arc::default() };
        state.report(ServingStatus::NotServing).await;
        (state, service)
    }

    /// Reports to probes and watchers that new calls are accepted.
    pub async fn set_serving(&self) {
        self.set(Ok(())).await;
    }

    /// Reports to probes and watchers that new calls are rejected, and to HTTP probes the reason.
    pub async fn set_not_serving(&self, reason: impl Into<String>) {
        self.set(Err(reason.into())).await;
    }

    /// Returns a receiver of the readiness and its changes.
    pub fn readiness(&self) -> Readiness {
        self.readiness.subscribe()
    }

    /// Ends every `Watch`, which would otherwise keep its connection open.
    pub async fn end_watches(&self) {
        let mut reporter = self.reporter.clone();
        for name in self.services.iter().copied().chain([""]) {
            reporter.clear_service_status(name).await;
        }
    }

    async fn set(&self, readiness: Result<(), String>) {
        let _update = self.update.lock().await;
        let serving = readiness.is_ok();
        let before = self.readiness.send_replace(readiness);
        // gRPC health has no reasons, so a changed reason alone is not reported to its watchers.
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

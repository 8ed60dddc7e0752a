//! What health checks say of a process.

use std::sync::Arc;

use tokio::sync::Mutex;
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health, HealthServer},
    server::HealthReporter,
};

/// The health of a listener: `""` and every service there go up and down together.
#[derive(Clone)]
pub struct HealthState {
    reporter: HealthReporter,
    services: &'static [&'static str],
    /// What watchers were told last: the same is not told twice.
    serving: Arc<Mutex<Option<bool>>>,
}

impl HealthState {
    /// A reporter for `services`, and its own service. Every name is registered now, since tonic-health's `Watch` answers
    /// NOT_FOUND to a name that it learns later.
    pub async fn new(services: &'static [&'static str]) -> (Self, HealthServer<impl Health>) {
        let (reporter, service) = tonic_health::server::health_reporter();
        let state = Self { reporter, services, serving: Arc::default() };
        state.set_serving(false).await;
        (state, service)
    }

    /// Tells probes and watchers whether new calls are welcome.
    pub async fn set_serving(&self, serving: bool) {
        let mut told = self.serving.lock().await;
        if told.replace(serving) == Some(serving) {
            return;
        }
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in self.services.iter().copied().chain([""]) {
            self.reporter.set_service_status(name, status).await;
        }
    }

    /// Ends every `Watch`, which would keep its connection open for ever.
    pub async fn end_watches(&self) {
        let mut reporter = self.reporter.clone();
        for name in self.services.iter().copied().chain([""]) {
            reporter.clear_service_status(name).await;
        }
    }
}

//! Metrics of the session with etcd.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

use crate::names::etcd as names;

/// Handle to the metrics of a session. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct EtcdMetrics {
    connected: Gauge,
    failures: Counter,
}

impl EtcdMetrics {
    /// Registers all metrics.
    pub fn register(&self, registry: &mut Registry) {
        names::CONNECTED.register(registry, self.connected.clone());
        names::FAILURES.register(registry, self.failures.clone());
    }

    /// Records that a session was established.
    pub(super) fn succeeded(&self) {
        self.connected.set(1);
    }

    /// Records that a session failed, or could not be established.
    pub(super) fn failed(&self) {
        self.connected.set(0);
        self.failures.inc();
    }

    /// Records that no session is wanted any more.
    pub(super) fn ended(&self) {
        self.connected.set(0);
    }
}

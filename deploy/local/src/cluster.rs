//! A router and its workers in this process, connected by gRPC over loopback.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::{
    FutureExt,
    future::{BoxFuture, join_all, select_all},
};
use prometheus_client::registry::Registry as MetricsRegistry;
use stoker_router::{RouterConfig, RunningRouter};
use stoker_shared::{
    discovery::{Candidate, Registration, Registry, WorkerId},
    serve::{self, LimitsConfig, ListenAddress, Listener, Readiness, admin::AdminListener},
};
use stoker_worker::{ModelSource, RunningWorker, WorkerConfig, config::AcceptRouting};

use crate::error::Error;

/// Any free port of the loopback interface.
const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// A running cluster. Dropping it stops it without a drain.
pub struct Cluster {
    router: RunningRouter,
    workers: Vec<(RunningWorker, Registration)>,
}

impl Cluster {
    /// Like [`Cluster::serve`], on the address `listen`.
    pub async fn start(
        listen: ListenAddress,
        source: ModelSource,
        workers: u16,
        config: WorkerConfig,
        router: RouterConfig,
    ) -> Result<Self, Error> {
        // Binds before the model is loaded, so that a port in use is reported at once.
        let listener =
            serve::bind(listen).await.map_err(|error| Error::Usage(error.to_string()))?;
        Self::serve(listener, source, workers, config, router).await
    }

    /// Loads the model once, starts `workers` workers that share it and a router on `listener`, and
    /// waits until the router has found all of them.
    pub async fn serve(
        listener: Listener,
        source: ModelSource,
        workers: u16,
        config: WorkerConfig,
        router: RouterConfig,
    ) -> Result<Self, Error> {
        let usage = |error: &dyn std::error::Error| Error::Usage(error.to_string());
        // The configured limits apply to the router, the only listener that clients reach. Workers
        // are reached by the router alone and have the default limits.
        let limits = config.limits;
        let (own, accept_routing) = (LimitsConfig::default(), AcceptRouting::Loopback);
        let config = WorkerConfig { limits: own, accept_routing, ..config };
        let name = source.name();
        let worker = config.clone();
        let load = move || stoker_worker::load(&source, &worker, workers);
        let model = tokio::task::spawn_blocking(load)
            .await
            .map_err(|error| Error::Failed(format!("loading failed: {error}")))?
            .map_err(|error| usage(&error))?;
        let model = Arc::new(model);

        let registry = Registry::default();
        let mut running = Vec::with_capacity(usize::from(workers));
        for number in 1..=workers {
            let listener = serve::bind(LOOPBACK).await.map_err(|error| usage(&error))?;
            let id = format!("worker-{number}");
            let (model, name, config) = (Arc::clone(&model), name.clone(), config.clone());
            let worker = stoker_worker::start(config, model, name, Some(id), listener)
                .await
                .map_err(|error| usage(&error))?;
            let registration = registry.register(Candidate::named(
                WorkerId::new(worker.id()),
                worker.address().to_string(),
            ));
            running.push((worker, registration));
        }
        let router = RouterConfig { limits, ..router };
        let router = stoker_router::start(router, registry.watch(), listener)
            .await
            .map_err(|error| Error::Failed(error.to_string()))?;
        router.wait_ready(usize::from(workers)).await;
        Ok(Self { router, workers: running })
    }

    /// Whether the router accepts requests.
    pub fn readiness(&self) -> Readiness {
        self.router.readiness()
    }

    /// Registers the metrics of the router and, with the label `worker`, of each worker. Those of
    /// the workers' listeners, which only the router reaches, are left out.
    pub fn register_metrics(&self, registry: &mut MetricsRegistry) {
        self.router.register_metrics(registry);
        for (worker, _) in &self.workers {
            worker.register_metrics(registry);
        }
    }

    /// Serves OpenAI's API of the router on `listener`, until the cluster is shut down. Returns its
    /// address.
    pub fn serve_http(&mut self, listener: impl Into<Listener>) -> Result<SocketAddr, Error> {
        let served = self.router.serve_http(listener);
        served.map_err(|error| Error::Failed(format!("--http-listen: {error}")))
    }

    /// Serves `stoker.v1.Admin` of the router on `listener` until the returned value is dropped.
    pub async fn serve_admin(&self, listener: impl Into<Listener>) -> Result<AdminListener, Error> {
        let served = self.router.serve_admin(listener).await;
        served.map_err(|error| Error::Failed(format!("--admin-listen: {error}")))
    }

    /// Address of the router's listener.
    pub fn address(&self) -> SocketAddr {
        self.router.address()
    }

    /// Resolves if the engine of a worker fails.
    pub async fn failed(&self) {
        let never = Box::pin(std::future::pending()) as BoxFuture<()>;
        let failures = self.workers.iter().map(|(worker, _)| worker.failed().boxed());
        select_all(failures.chain([never])).await;
    }

    /// Refuses new calls, lets running streams finish for up to `timeout`, and stops. Returns the
    /// number of unfinished streams.
    pub async fn shutdown(self, timeout: Duration) -> usize {
        let unfinished = self.router.shutdown(timeout).await;
        // No router calls the workers any more.
        let stops = self.workers.into_iter().map(|(worker, _)| worker.shutdown(Duration::ZERO));
        join_all(stops).await;
        unfinished
    }
}

//! A router and its workers in this process, joined by gRPC over loopback.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::{
    FutureExt,
    future::{BoxFuture, join_all, select_all},
};
use stoker_router::{RouterConfig, RunningRouter};
use stoker_shared::{
    discovery::{Candidate, Registration, Registry, WorkerId},
    serve::{self, LimitsConfig, ListenAddress},
};
use stoker_worker::{ModelSource, RunningWorker, WorkerConfig, config::AcceptRouting};

use crate::error::Error;

/// Any free port that only this machine reaches.
const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// A cluster that serves. Dropping it stops it without a drain.
pub struct Cluster {
    router: RunningRouter,
    workers: Vec<(RunningWorker, Registration)>,
}

impl Cluster {
    /// Loads the model once, starts `workers` workers that share it and a router on `listen`, and waits
    /// until the router has found them all.
    pub async fn start(
        listen: ListenAddress,
        source: ModelSource,
        workers: u16,
        config: WorkerConfig,
    ) -> Result<Self, Error> {
        let usage = |error: &dyn std::error::Error| Error::Usage(error.to_string());
        // Clients reach the router alone, and the router is the only one to reach the workers.
        let limits = config.limits;
        let (own, accept_routing) = (LimitsConfig::default(), AcceptRouting::Loopback);
        let config = WorkerConfig { limits: own, accept_routing, ..config };
        // Bound before the model is loaded: a port in use is known at once.
        let listener = serve::bind(listen).await.map_err(|error| usage(&error))?;
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
            let registration = registry.register(Candidate {
                id: WorkerId::new(worker.id()),
                address: worker.address().to_string(),
            });
            running.push((worker, registration));
        }
        let router = RouterConfig { limits, ..RouterConfig::default() };
        let router = stoker_router::start(router, registry.watch(), listener)
            .await
            .map_err(|error| Error::Failed(error.to_string()))?;
        router.wait_ready(usize::from(workers)).await;
        Ok(Self { router, workers: running })
    }

    /// Where the router listens.
    pub fn address(&self) -> SocketAddr {
        self.router.address()
    }

    /// Resolves if the engine of a worker fails.
    pub async fn failed(&self) {
        let never = Box::pin(std::future::pending()) as BoxFuture<()>;
        let failures = self.workers.iter().map(|(worker, _)| worker.failed().boxed());
        select_all(failures.chain([never])).await;
    }

    /// Takes no new calls, lets running streams finish for `timeout`, and stops. Answers how many streams
    /// were left.
    pub async fn shutdown(self, timeout: Duration) -> usize {
        let unfinished = self.router.shutdown(timeout).await;
        // Nobody calls the workers any more.
        let stops = self.workers.into_iter().map(|(worker, _)| worker.shutdown(Duration::ZERO));
        join_all(stops).await;
        unfinished
    }
}

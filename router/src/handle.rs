//! A router that runs: started, asked, and shut down from inside a process.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures::FutureExt;
use prometheus_client::registry::Registry;
use stoker_proto::{
    SERVICES,
    v1::{control_server::ControlServer, inference_server::InferenceServer},
};
use stoker_shared::{
    discovery::{Changes, WorkerId},
    serve::{self, Bounds, HealthState, MAX_REQUEST_BYTES, Readiness, admin::AdminListener},
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::service::RoutesBuilder;
use tracing::{info, warn};

use crate::{
    RouterConfig,
    control::ControlService,
    layer::gate::DrainGate,
    metrics::Metrics,
    pool::{Pool, State, health},
    server::Server,
    stack,
    tenant::{Priorities, PriorityError, Tenants},
};

/// Connections have this long to say goodbye once their streams are over.
const GOODBYE: Duration = Duration::from_secs(1);
/// Why a router that stops is not ready.
const DRAINING: &str = "draining";
/// A router that is not ready says why after a moment, and then again from time to time.
const FIRST_EXCUSE: Duration = Duration::from_secs(2);
const NEXT_EXCUSE: Duration = Duration::from_secs(30);

/// Why a router does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The listener is of no use.
    #[error("the listener has no address: {0}")]
    Listener(#[from] io::Error),
    /// Rules for tenants contradict each other, or nobody can fall under them.
    #[error(transparent)]
    Priority(#[from] PriorityError),
    /// The descriptors in this binary cannot be read.
    #[error("server reflection: {0}")]
    Reflection(String),
}

/// A router that serves. Dropping it stops it without a drain.
pub struct RunningRouter {
    address: SocketAddr,
    pool: Pool,
    gate: DrainGate,
    metrics: Metrics,
    bounds: Bounds,
    health: HealthState,
    stop: CancellationToken,
    server: AbortOnDropHandle<Result<(), tonic::transport::Error>>,
    _reporter: AbortOnDropHandle<()>,
    _reviewer: AbortOnDropHandle<()>,
}

/// A worker as the router sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerView {
    /// Who it is.
    pub id: WorkerId,
    /// What it serves.
    pub model: String,
    /// Whether it takes new requests.
    pub live: bool,
    /// Whether it is left alone although it lives, or gets but a few requests, because it failed or was slow.
    pub ejected: bool,
    /// Tokens that it is still expected to read or make for this router.
    pub outstanding_tokens: u64,
    /// Calls of this router that are under way there.
    pub streams: u64,
}

/// Starts a router on `listener`. It serves at once, and answers UNAVAILABLE until a worker is there.
pub async fn start(
    config: RouterConfig,
    changes: Changes,
    listener: TcpListener,
) -> Result<RunningRouter, StartError> {
    let address = listener.local_addr()?;
    let priorities = Priorities::new(&config.tenant_priority, config.tenant_header.is_some())?;
    let pool = Pool::follow(changes, config.resume.stall_patience());
    let gate = DrainGate::default();
    let metrics = Metrics::default();
    let bounds = Bounds::new(&config.limits, None);
    let control = ControlService::new(pool.clone(), gate.clone(), bounds.clone());
    let server = Server {
        stack: stack::build(&config, priorities, &pool, &gate, &metrics),
        gate: gate.clone(),
        tenants: Tenants::new(config.tenant_header.as_deref()),
        bounds: bounds.clone(),
        metrics: metrics.clone(),
    };

    let (health, health_service) = HealthState::new(&SERVICES).await;
    let mut routes = RoutesBuilder::default();
    routes
        .add_service(
            serve::compressed!(InferenceServer::new(server))
                .max_decoding_message_size(MAX_REQUEST_BYTES),
        )
        .add_service(
            serve::compressed!(ControlServer::new(control))
                .max_decoding_message_size(MAX_REQUEST_BYTES),
        );
    let routes = serve::with_reflection(routes, health_service, &SERVICES)
        .map_err(|error| StartError::Reflection(error.to_string()))?;

    let stop = CancellationToken::new();
    let serving = serve::server(&bounds).add_routes(routes).serve_with_incoming_shutdown(
        serve::incoming(listener, &bounds),
        stop.clone().cancelled_owned(),
    );
    let reviewer = health::review(pool.clone(), config.health, metrics.clone());
    let reporter = report_health(pool.clone(), gate.clone(), health.clone());
    Ok(RunningRouter {
        address,
        pool,
        gate,
        metrics,
        bounds,
        health,
        stop,
        server: AbortOnDropHandle::new(tokio::spawn(serving)),
        _reporter: AbortOnDropHandle::new(tokio::spawn(reporter)),
        _reviewer: AbortOnDropHandle::new(tokio::spawn(reviewer)),
    })
}

impl RunningRouter {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds its metrics to `registry`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.bounds.register(registry);
        self.metrics.register(registry, &self.pool, self.bounds.memory());
    }

    /// Serves operators on `listener`, as long as what this returns is there.
    pub async fn serve_admin(&self, listener: TcpListener) -> io::Result<AdminListener> {
        let gate = self.gate.clone();
        let drain = move |timeout| {
            let gate = gate.clone();
            async move {
                gate.close();
                gate.drained(timeout).await
            }
            .boxed()
        };
        AdminListener::start(listener, Arc::new(drain)).await
    }

    /// Whether it takes requests, else why not: what gRPC health tells.
    pub fn readiness(&self) -> Readiness {
        self.health.readiness()
    }

    /// Waits until at least `workers` workers take requests.
    pub async fn wait_ready(&self, workers: usize) {
        let mut fleet = self.pool.watch();
        // Fails only once the pool is gone, and it is held here.
        let _ = fleet.wait_for(|fleet| fleet.live().count() >= workers).await;
    }

    /// The workers that it has seen.
    pub fn workers(&self) -> Vec<WorkerView> {
        let fleet = self.pool.fleet();
        let views = fleet.seen().map(|(worker, state)| WorkerView {
            id: worker.id.clone(),
            model: worker.info.model.clone(),
            live: matches!(state, State::Live(_)),
            ejected: matches!(state, State::Live(_)) && worker.health.is_suspected(),
            outstanding_tokens: worker.outstanding.tokens(),
            streams: worker.outstanding.streams(),
        });
        views.collect()
    }

    /// Drains and stops: tells health watchers first, refuses new calls, lets running streams finish for
    /// `timeout`, and ends those that are left with UNAVAILABLE. Answers how many that were.
    pub async fn shutdown(mut self, timeout: Duration) -> usize {
        self.health.set_not_serving(DRAINING).await;
        self.gate.close();
        let unfinished = self.gate.drained(Some(timeout)).await;
        self.gate.cut_off();
        self.health.end_watches().await;
        self.stop.cancel();
        // Whoever does not close by then is left behind.
        let _ = tokio::time::timeout(GOODBYE, &mut self.server).await;
        unfinished
    }
}

impl Drop for RunningRouter {
    fn drop(&mut self) {
        self.gate.cut_off();
    }
}

/// Serving only while somebody can answer; the log says why not.
async fn report_health(pool: Pool, gate: DrainGate, health: HealthState) {
    let mut fleet = pool.watch();
    let mut serving = false;
    let mut excuse = FIRST_EXCUSE;
    loop {
        let now = Arc::clone(&fleet.borrow_and_update());
        let live = now.live().count();
        let before = std::mem::replace(&mut serving, live > 0);
        if serving {
            health.set_serving().await;
        } else {
            // Also when it was not ready before: the reason may be another one.
            health.set_not_serving(now.no_worker_error().to_string()).await;
        }
        if serving != before && serving {
            info!(workers = live, "ready");
        } else if serving != before {
            warn!(reason = %now.no_worker_error(), "not ready");
            excuse = NEXT_EXCUSE;
        }
        tokio::select! {
            () = gate.closed().cancelled() => break,
            changed = fleet.changed() => if changed.is_err() { break },
            () = tokio::time::sleep(excuse), if !serving => {
                warn!(reason = %now.no_worker_error(), "not ready");
                excuse = NEXT_EXCUSE;
            }
        }
    }
    health.set_not_serving(DRAINING).await;
}

//! An embedded router: start, inspect and shut down from within the process.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::middleware;
use futures::FutureExt;
use prometheus_client::registry::Registry;
use stoker_proto::{
    SERVICES,
    v1::{control_server::ControlServer, inference_server::InferenceServer},
};
use stoker_shared::{
    discovery::{Source, WorkerId},
    drain::DrainGate,
    serve::{self, Bounds, HealthState, Listener, Readiness, admin::AdminListener},
};
use tokio::time::{Instant, timeout_at};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::service::{Routes, RoutesBuilder};
use tracing::{info, warn};

use crate::{
    RouterConfig,
    admin::AdminView,
    authenticate, collectors,
    config::{AliasError, ModelAliases},
    control::ControlService,
    metrics::Metrics,
    openai::{self, AllowedOrigins, OpenAi},
    pool::{Pool, State, review},
    requests::Requests,
    server::Server,
    stack,
    tenant::{Priorities, PriorityError, Tenants},
};

/// Default age of a connection that takes no more calls.
const CONNECTION_AGE: Duration = Duration::from_secs(30 * 60);
/// Time that clients have to read GOAWAY, in which calls that they send are still served.
const GOAWAY_TIMEOUT: Duration = Duration::from_secs(2);
/// Time that connections have to close once their streams have ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Reason for "not ready" during a shutdown.
const DRAINING: &str = "draining";
/// Delay before a router that is not ready logs the reason, and the interval between repetitions.
const FIRST_NOT_READY_LOG: Duration = Duration::from_secs(2);
const NOT_READY_LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Error that prevents a router from starting.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The listener has no local address.
    #[error("the listener has no address: {0}")]
    Listener(#[from] io::Error),
    /// Tenant rules contradict each other or can never apply.
    #[error(transparent)]
    Priority(#[from] PriorityError),
    /// Tenants have two sources.
    #[error(
        "--tenant-header and --api-keys both name the tenant of a request: use the header behind a \
         gateway that authenticates clients, or the keys"
    )]
    TwoTenants,
    /// The field `user` is to replace a header that is not configured.
    #[error("--tenant-from-user needs --tenant-header, whose place the field `user` takes; set it")]
    UserWithoutHeader,
    /// Aliases of models contradict each other.
    #[error(transparent)]
    Alias(#[from] AliasError),
    /// The protobuf descriptors in this binary cannot be read.
    #[error("server reflection: {0}")]
    Reflection(String),
}

/// A server that runs.
type Serving = AbortOnDropHandle<Result<(), tonic::transport::Error>>;

/// Starts a server for connections that are made during a drain, until the token is cancelled.
type DrainServer = Box<dyn FnOnce(CancellationToken) -> io::Result<Serving> + Send + Sync>;

/// A running router. Dropping it stops it without a drain.
pub struct RunningRouter {
    address: SocketAddr,
    pool: Pool,
    gate: DrainGate,
    metrics: Metrics,
    requests: Requests,
    bounds: Bounds,
    health: HealthState,
    stop: CancellationToken,
    server: Serving,
    /// Serves connections that are made during a drain, when the first server takes none.
    drain_server: Option<DrainServer>,
    /// OpenAI's API, for a listener of its own.
    http_routes: axum::Router,
    /// Serves HTTP, and connections that are made during a drain.
    http: Option<(Serving, DrainServer)>,
    _reporter: AbortOnDropHandle<()>,
    _reviewer: AbortOnDropHandle<()>,
}

/// Status of a worker as seen by the router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerView {
    /// Id of the worker.
    pub id: WorkerId,
    /// Name of the model that it serves.
    pub model: String,
    /// Whether it accepts new requests.
    pub live: bool,
    /// Whether it is live but ejected or half-open, because it failed or was slow.
    pub ejected: bool,
    /// Estimated tokens that it has yet to compute or generate for this router.
    pub outstanding_tokens: u64,
    /// Calls of this router in flight there.
    pub streams: u64,
}

/// Starts a router on `listener`. It serves immediately, and returns UNAVAILABLE until a worker is
/// live.
pub async fn start(
    config: RouterConfig,
    source: impl Into<Source>,
    listener: impl Into<Listener>,
) -> Result<RunningRouter, StartError> {
    let listener = listener.into();
    let address = listener.local_addr()?;
    if config.tenant_header.is_some() && config.tenants.api_keys.is_some() {
        return Err(StartError::TwoTenants);
    }
    let priorities = Priorities::new(&config.tenant_priority, config.has_tenants())?;
    if config.tenant_from_user && config.tenant_header.is_none() {
        return Err(StartError::UserWithoutHeader);
    }
    let aliases = ModelAliases::new(&config.model_alias)?;
    let stall = config.resume.stall_detection_time();
    let pool = Pool::follow(source.into(), stall, aliases, config.worker_tls.clone());
    let gate = DrainGate::default();
    let metrics = Metrics::default();
    let requests = Requests::new(config.request_log.recent_requests);
    let mut limits = config.limits.clone();
    limits.max_connection_age.get_or_insert(CONNECTION_AGE);
    let bounds = Bounds::new(&limits, None);
    let keys = config.tenants.keys(bounds.memory(), &metrics);
    let control = ControlService::new(pool.clone(), gate.clone(), bounds.clone());
    let server = Server {
        stack: stack::build(&config, priorities, &pool, &gate, &metrics, &requests),
        gate: gate.clone(),
        tenants: Tenants::new(config.tenant_header.as_deref()),
        bounds: bounds.clone(),
        metrics: metrics.clone(),
    };

    let (health, health_service) = HealthState::new(&SERVICES).await;
    let api = OpenAi {
        server: server.clone(),
        control: control.clone(),
        readiness: health.readiness(),
        tenant_from_user: config.tenant_from_user,
        started: openai::unix_time(),
    };
    let origins = AllowedOrigins::new(&config.http_allowed_origins);
    let http_routes = openai::routes(api, &origins, keys.clone());
    let max_request = bounds.max_request_bytes();
    let mut routes = RoutesBuilder::default();
    routes
        .add_service(
            serve::compressed!(InferenceServer::new(server)).max_decoding_message_size(max_request),
        )
        .add_service(
            serve::compressed!(ControlServer::new(control)).max_decoding_message_size(max_request),
        );
    let routes = serve::with_reflection(routes, health_service, &SERVICES)
        .map_err(|error| StartError::Reflection(error.to_string()))?;
    let routes = match keys {
        Some(keys) => {
            let authenticate = middleware::from_fn_with_state(keys, authenticate::grpc);
            Routes::from(routes.into_axum_router().layer(authenticate))
        }
        None => routes,
    };

    let stop = CancellationToken::new();
    let (listener, second_listener) = listener.duplicate()?;
    let serve = {
        let bounds = bounds.clone();
        move |listener: Listener, stop: CancellationToken| -> io::Result<Serving> {
            let incoming = serve::incoming(listener, &bounds);
            let serving = serve::server(&bounds)
                .add_routes(routes.clone())
                .serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
            Ok(AbortOnDropHandle::new(tokio::spawn(serving)))
        }
    };
    let server = serve(listener, stop.clone())?;
    let reviewer = review(pool.clone(), config.health, metrics.clone());
    let reporter = report_health(pool.clone(), gate.clone(), health.clone(), metrics.clone());
    Ok(RunningRouter {
        address,
        pool,
        gate,
        metrics,
        requests,
        bounds,
        health,
        stop,
        server,
        drain_server: Some(Box::new(move |stop| serve(second_listener, stop))),
        http_routes,
        http: None,
        _reporter: AbortOnDropHandle::new(tokio::spawn(reporter)),
        _reviewer: AbortOnDropHandle::new(tokio::spawn(reviewer)),
    })
}

impl RunningRouter {
    /// Returns the address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds its metrics to `registry`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.bounds.register(registry);
        self.metrics.register(registry);
        collectors::register(registry, &self.pool, self.bounds.memory());
    }

    /// Serves OpenAI's API on `listener`, until the router is shut down. Returns its address.
    pub fn serve_http(&mut self, listener: impl Into<Listener>) -> io::Result<SocketAddr> {
        let listener = listener.into();
        let address = listener.local_addr()?;
        let (listener, second_listener) = listener.duplicate()?;
        let (routes, bounds) = (Routes::from(self.http_routes.clone()), self.bounds.clone());
        let serve = move |listener: Listener, stop: CancellationToken| {
            let incoming = serve::incoming(listener, &bounds);
            let serving = serve::http_server(&bounds)
                .add_routes(routes.clone())
                .serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
            Ok(AbortOnDropHandle::new(tokio::spawn(serving)))
        };
        let server = serve(listener, self.stop.clone())?;
        self.http = Some((server, Box::new(move |stop| serve(second_listener, stop))));
        Ok(address)
    }

    /// Serves `stoker.v1.Admin` on `listener` until the returned value is dropped.
    pub async fn serve_admin(&self, listener: impl Into<Listener>) -> io::Result<AdminListener> {
        let gate = self.gate.clone();
        let drain = move |timeout| {
            let gate = gate.clone();
            async move {
                gate.close();
                gate.drained(timeout).await
            }
            .boxed()
        };
        let view = AdminView {
            pool: self.pool.clone(),
            readiness: self.readiness(),
            requests: self.requests.clone(),
            metrics: self.metrics.clone(),
        };
        AdminListener::start(listener.into(), Arc::new(drain), Some(Arc::new(view))).await
    }

    /// Returns the state that gRPC health reports: ready, or the reason why not.
    pub fn readiness(&self) -> Readiness {
        self.health.readiness()
    }

    /// Waits until at least `workers` workers are live.
    pub async fn wait_ready(&self, workers: usize) {
        let mut fleet = self.pool.watch();
        // Fails only once the pool is dropped, and `self` holds it.
        let _ = fleet.wait_for(|fleet| fleet.live().count() >= workers).await;
    }

    /// Returns the workers that it has discovered.
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

    /// Drains and stops: notifies health watchers, sends GOAWAY on every connection, lets running
    /// streams finish for `timeout`, and ends the remaining ones with UNAVAILABLE. Returns their
    /// number. New connections learn that it drains.
    pub async fn shutdown(mut self, timeout: Duration) -> usize {
        let cut_off = Instant::now() + timeout;
        self.gate.begin_drain();
        self.health.set_not_serving(DRAINING).await;
        // Clients open their next connection elsewhere, and read running streams to their end.
        self.stop.cancel();
        let drained = CancellationToken::new();
        let (http, http_drain) = self.http.take().unzip();
        let second = [self.drain_server.take(), http_drain].into_iter().flatten();
        let second = second.map(|serve| serve(drained.clone())).collect::<io::Result<Vec<_>>>();
        let second = second.unwrap_or_else(|error| {
            warn!(%error, "no connections are accepted during the drain");
            Vec::new()
        });
        // Calls that were sent before GOAWAY was read are served.
        let read_by = cut_off.min(Instant::now() + GOAWAY_TIMEOUT);
        let closed = timeout_at(read_by, &mut self.server).await;
        self.gate.close();
        let unfinished = self.gate.drained(Some(cut_off - Instant::now())).await;
        self.gate.cut_off();
        self.health.end_watches().await;
        drained.cancel();
        // Connections that do not close by then are dropped.
        let close = async {
            if closed.is_err() {
                let _ = (&mut self.server).await;
            }
            for server in second.into_iter().chain(http) {
                let _ = server.await;
            }
        };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, close).await;
        unfinished
    }
}

impl Drop for RunningRouter {
    fn drop(&mut self) {
        self.gate.cut_off();
    }
}

/// Reports "serving" while at least one worker is live, and logs the reason otherwise. Also adds the
/// metrics of new models.
async fn report_health(pool: Pool, gate: DrainGate, health: HealthState, metrics: Metrics) {
    let mut fleet = pool.watch();
    let mut serving = false;
    let mut log_after = FIRST_NOT_READY_LOG;
    loop {
        let now = Arc::clone(&fleet.borrow_and_update());
        now.models().for_each(|model| metrics.add_model(model.name()));
        let live = now.live().count();
        let before = std::mem::replace(&mut serving, live > 0);
        if serving {
            health.set_serving().await;
        } else {
            // Also if it was not ready before, since the reason may have changed.
            health.set_not_serving(now.no_worker_error().to_string()).await;
        }
        if serving != before && serving {
            info!(workers = live, "ready");
        } else if serving != before {
            warn!(reason = %now.no_worker_error(), "not ready");
            log_after = NOT_READY_LOG_INTERVAL;
        }
        tokio::select! {
            () = gate.draining().cancelled() => break,
            changed = fleet.changed() => if changed.is_err() { break },
            () = tokio::time::sleep(log_after), if !serving => {
                warn!(reason = %now.no_worker_error(), "not ready");
                log_after = NOT_READY_LOG_INTERVAL;
            }
        }
    }
    health.set_not_serving(DRAINING).await;
}

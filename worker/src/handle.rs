//! The handle of a running worker: start, readiness and shutdown within a process.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures::FutureExt;
use prometheus_client::registry::Registry;
use stoker_engine::Model;
use stoker_ops::KV_BLOCK;
use stoker_proto::{
    SERVICES,
    v1::{ModelInfo, control_server::ControlServer, inference_server::InferenceServer},
};
use stoker_shared::{
    host,
    serve::{
        self, Bounds, CallLimit, HealthState, MAX_REQUEST_BYTES, MAX_ROUTED_BYTES, Readiness,
        admin::AdminListener,
    },
    validate,
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::service::RoutesBuilder;

use crate::{
    WorkerConfig,
    config::ConfigError,
    control::{ControlService, LOAD_WATCHES},
    engine_thread::{self, EngineHandle, EngineThread},
    gpu,
    inflight::{Inflight, Limit, Limits},
    metrics::Metrics,
    service::Worker,
    text::TextExecutor,
};

/// Time that connections have to close after their streams have ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Streams of a connection beyond those that the worker can run and queue.
const EXTRA_STREAMS: usize = 128;

/// Health status reason of a worker that drains.
const DRAINING: &str = "draining";

/// Why a worker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A name is invalid.
    #[error("{flag} {why}")]
    Name {
        /// The flag that sets the name.
        flag: &'static str,
        /// Why the name is invalid.
        why: String,
    },
    /// Settings contradict each other or the model.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The listener or a thread cannot be used.
    #[error("operating system: {0}")]
    System(#[from] io::Error),
    /// The protobuf descriptors of this binary are invalid.
    #[error("server reflection: {0}")]
    Reflection(String),
}

/// A running worker. Dropping it stops it without a drain.
pub struct RunningWorker {
    id: Arc<str>,
    model_name: Arc<str>,
    metrics: Metrics,
    address: SocketAddr,
    control: ControlService,
    inflight: Inflight,
    health: HealthState,
    stop: CancellationToken,
    server: AbortOnDropHandle<Result<(), tonic::transport::Error>>,
    engine: EngineHandle,
    thread: EngineThread,
    engine_ended: CancellationToken,
}

/// Starts a worker for `model`, named `model_name` in requests. Its id is `id`; by default the name
/// of the host and the port, since an address may be that of every interface.
pub async fn start(
    config: WorkerConfig,
    model: Arc<Model>,
    model_name: String,
    id: Option<String>,
    listener: TcpListener,
) -> Result<RunningWorker, StartError> {
    let address = listener.local_addr()?;
    let id = id.unwrap_or_else(|| format!("{}:{}", host::name(), address.port()));
    let id: Arc<str> = id.into();
    let engine_config = config.engine(
        &model.config,
        model.draft.as_ref().map(|draft| &draft.config),
        model.quantization,
    )?;
    let name = |flag, text: &str| match validate::name(text) {
        Ok(_) => Ok(()),
        Err(why) => Err(StartError::Name { flag, why }),
    };
    name("--model-name", &model_name)?;
    name("--worker-id", &id)?;
    let slots = config.max_num_seqs as usize;
    let limits = Limits {
        sequences: Limit { new: slots + config.max_num_queued_reqs as usize, resumed: slots },
        queued_tokens: Limit {
            new: config.queued_tokens(&engine_config, model.config.context_length),
            resumed: engine_config.kv_blocks * KV_BLOCK,
        },
    };
    let metrics = Metrics::default();
    let (engine, thread) = engine_thread::spawn(
        &id,
        Arc::clone(&model),
        engine_config,
        config.compute.speculation.clone(),
        limits.sequences.new + limits.sequences.resumed,
        metrics.step_duration.clone(),
    )?;
    let engine_ended = CancellationToken::new();
    let mut load = engine.load();
    // Waits until a GPU has compiled its kernels and recorded its graphs. The task below detects a
    // thread that has ended.
    let _ = load.changed().await;
    let ended = engine_ended.clone();
    let handle = engine.clone();

    let inflight = Inflight::new(limits);
    // A call beyond the limits must be rejected, not wait at the client for a stream.
    let streams = limits.sequences.new + limits.sequences.resumed + EXTRA_STREAMS;
    let bounds = Bounds::new(&config.limits, u32::try_from(streams).ok());
    let model_name: Arc<str> = model_name.into();
    let worker = Worker {
        id: Arc::clone(&id),
        instance_id: uuid::Uuid::now_v7().simple().to_string().into(),
        model_name: Arc::clone(&model_name),
        model,
        engine,
        inflight: inflight.clone(),
        metrics: metrics.clone(),
        text: TextExecutor::start(&id)?,
        bounds: bounds.clone(),
        accept_routing: config.accept_routing,
    };
    let watches = CallLimit::new("WatchLoad calls", LOAD_WATCHES);
    let control = ControlService { worker: worker.clone(), config, watches };
    let (health, health_service) = HealthState::new(&SERVICES).await;
    let mut routes = RoutesBuilder::default();
    routes
        .add_service(
            serve::compressed!(InferenceServer::new(worker))
                .max_decoding_message_size(MAX_ROUTED_BYTES),
        )
        .add_service(
            serve::compressed!(ControlServer::new(control.clone()))
                .max_decoding_message_size(MAX_REQUEST_BYTES),
        );
    let routes = serve::with_reflection(routes, health_service, &SERVICES)
        .map_err(|error| StartError::Reflection(error.to_string()))?;

    let stop = CancellationToken::new();
    let serving = serve::server(&bounds).add_routes(routes).serve_with_incoming_shutdown(
        serve::incoming(listener, &bounds),
        stop.clone().cancelled_owned(),
    );
    health.set_serving().await;
    let reporter = health.clone();
    let mut draining = inflight.draining();
    tokio::spawn(async move {
        // The channel closes when the engine thread ends, which before a shutdown means a panic.
        let engine_ends = async { while load.changed().await.is_ok() {} };
        let mut engine_ends = std::pin::pin!(engine_ends);
        tokio::select! {
            () = &mut engine_ends => {}
            // Reported to health checks for every cause of a drain.
            () = async { drop(draining.wait_for(|draining| *draining).await) } => {
                reporter.set_not_serving(DRAINING).await;
                engine_ends.await;
            }
        }
        ended.cancel();
        reporter.set_not_serving("the engine has ended").await;
    });
    Ok(RunningWorker {
        id,
        model_name,
        metrics,
        address,
        control,
        inflight,
        health,
        stop,
        server: AbortOnDropHandle::new(tokio::spawn(serving)),
        engine: handle,
        thread,
        engine_ended,
    })
}

impl RunningWorker {
    /// Returns the id of the worker, which its responses carry.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the address that the worker listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns whether the worker accepts requests, as gRPC health reports it.
    pub fn readiness(&self) -> Readiness {
        self.health.readiness()
    }

    /// Registers the metrics of the worker.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.control.worker.bounds.register(registry);
        let load = self.engine.load();
        let labelled = self.metrics.register(registry, &self.model_name, &self.id, load);
        if let Some(device) = self.control.worker.model.network.device() {
            gpu::register(labelled, device);
        }
    }

    /// Serves `stoker.v1.Admin` on `listener` until the returned value is dropped.
    pub async fn serve_admin(&self, listener: TcpListener) -> io::Result<AdminListener> {
        let inflight = self.inflight.clone();
        let drain = move |timeout| {
            let inflight = inflight.clone();
            async move { inflight.drain(timeout).await }.boxed()
        };
        AdminListener::start(listener, Arc::new(drain), None).await
    }

    /// Returns the response to `GetModelInfo`.
    pub fn info(&self) -> ModelInfo {
        self.control.model_info()
    }

    /// Resolves when a drain begins, for any cause.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut draining = self.inflight.draining();
        // Fails if the worker was dropped, which resolves the future too.
        async move { drop(draining.wait_for(|draining| *draining).await) }
    }

    /// Resolves if the engine fails, after which the worker cannot serve any request.
    pub async fn failed(&self) {
        self.engine_ended.cancelled().await;
    }

    /// Drains and stops the worker: reports NOT_SERVING to health watchers, rejects new calls, lets
    /// running streams finish for `timeout`, and ends the remaining ones with UNAVAILABLE. Returns
    /// the number of streams that it ended.
    pub async fn shutdown(self, timeout: Duration) -> usize {
        self.health.set_not_serving(DRAINING).await;
        let unfinished = self.inflight.drain(Some(timeout)).await;
        self.inflight.cancel();
        self.health.end_watches().await;
        self.stop.cancel();
        // Connections that are still open after the timeout are dropped.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.server).await;
        self.engine.stop().await;
        self.thread.join().await;
        unfinished
    }
}

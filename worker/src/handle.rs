//! A worker that runs: started, watched, and shut down from inside a process.

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
    text::TextWork,
};

/// Connections have this long to say goodbye once their streams are over.
const GOODBYE: Duration = Duration::from_secs(1);
/// Streams that a connection may have open beside those that the worker could run and queue.
const STREAMS_BESIDE: usize = 128;

/// Why a worker that stops is not ready.
const DRAINING: &str = "draining";

/// Why a worker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A name that no message may carry.
    #[error("{flag} {why}")]
    Name {
        /// The flag that gives it.
        flag: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Settings that contradict each other or the model.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The listener or the engine's thread.
    #[error("the system refused: {0}")]
    System(#[from] io::Error),
    /// The descriptors in this binary cannot be read.
    #[error("server reflection: {0}")]
    Reflection(String),
}

/// A worker that serves. Dropping it stops it without a drain.
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

/// Starts a worker for `model`, which requests call `model_name`. Its id is its address, or `id`.
pub async fn start(
    config: WorkerConfig,
    model: Arc<Model>,
    model_name: String,
    id: Option<String>,
    listener: TcpListener,
) -> Result<RunningWorker, StartError> {
    let address = listener.local_addr()?;
    let id: Arc<str> = id.unwrap_or_else(|| address.to_string()).into();
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
        sequences: Limit { new: slots + config.max_num_queued_reqs as usize, continued: slots },
        queued_tokens: Limit {
            new: config.queued_tokens(&engine_config, model.config.context_length),
            continued: engine_config.kv_blocks * KV_BLOCK,
        },
    };
    let metrics = Metrics::default();
    let (engine, thread) = engine_thread::spawn(
        &id,
        Arc::clone(&model),
        engine_config,
        config.compute.speculation.clone(),
        limits.sequences.new + limits.sequences.continued,
        metrics.step_duration.clone(),
    )?;
    let engine_ended = CancellationToken::new();
    let mut load = engine.load();
    // A GPU compiles kernels and records steps before the first request. If the thread ends, that is found out below.
    let _ = load.changed().await;
    let ended = engine_ended.clone();
    let handle = engine.clone();

    let inflight = Inflight::new(limits);
    // A call beyond the limits must be refused, and not wait at the client for a stream.
    let streams = limits.sequences.new + limits.sequences.continued + STREAMS_BESIDE;
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
        text: TextWork::start(&id)?,
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
        // The channel closes when the engine's thread ends, which it does by itself only if it panics.
        let engine_ends = async { while load.changed().await.is_ok() {} };
        let mut engine_ends = std::pin::pin!(engine_ends);
        tokio::select! {
            () = &mut engine_ends => {}
            // However the drain began, probes are told.
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
    /// Names it in answers.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it takes requests, else why not: what gRPC health tells.
    pub fn readiness(&self) -> Readiness {
        self.health.readiness()
    }

    /// Adds its metrics to `registry`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.control.worker.bounds.register(registry);
        let load = self.engine.load();
        let labelled = self.metrics.register(registry, &self.model_name, &self.id, load);
        if let Some(device) = self.control.worker.model.network.device() {
            gpu::register(labelled, device);
        }
    }

    /// Serves operators on `listener`, as long as what this returns is there.
    pub async fn serve_admin(&self, listener: TcpListener) -> io::Result<AdminListener> {
        let inflight = self.inflight.clone();
        let drain = move |timeout| {
            let inflight = inflight.clone();
            async move { inflight.drain(timeout).await }.boxed()
        };
        AdminListener::start(listener, Arc::new(drain)).await
    }

    /// What it answers to `GetModelInfo`.
    pub fn info(&self) -> ModelInfo {
        self.control.model_info()
    }

    /// Resolves once it takes no new calls, however that began.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut draining = self.inflight.draining();
        // Fails when the worker is gone, which is the end as well.
        async move { drop(draining.wait_for(|draining| *draining).await) }
    }

    /// Resolves if the engine fails, after which the worker can serve nobody.
    pub async fn failed(&self) {
        self.engine_ended.cancelled().await;
    }

    /// Drains and stops: tells health watchers first, refuses new calls, lets running streams finish for
    /// `timeout`, and ends those that are left with UNAVAILABLE. Answers how many that were.
    pub async fn shutdown(self, timeout: Duration) -> usize {
        self.health.set_not_serving(DRAINING).await;
        let unfinished = self.inflight.drain(Some(timeout)).await;
        self.inflight.cut_off();
        self.health.end_watches().await;
        self.stop.cancel();
        // Whoever does not close by then is left behind.
        let _ = tokio::time::timeout(GOODBYE, self.server).await;
        self.engine.stop().await;
        self.thread.join().await;
        unfinished
    }
}

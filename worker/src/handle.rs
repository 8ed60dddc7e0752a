//! The handle of a running worker: start, readiness and shutdown within a process.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures::FutureExt;
use prometheus_client::registry::Registry;
use stoker_chat_template::{ChatError, Renderer};
use stoker_engine::{Footprint, Model};
use stoker_ops::KV_BLOCK;
use stoker_proto::{
    SERVICES,
    v1::{ModelInfo, control_server::ControlServer, inference_server::InferenceServer},
};
use stoker_shared::{
    host,
    serve::{
        self, Bounds, CallLimit, HealthState, Listener, MAX_RESUME_BYTES, Readiness,
        admin::AdminListener,
    },
    validate,
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::service::RoutesBuilder;
use tracing::{info, warn};

use crate::{
    WorkerConfig,
    config::ConfigError,
    control::{ControlService, LOAD_WATCHES},
    engine_thread::{self, EngineHandle, EngineThread},
    engine_watch::{self, EngineState},
    gpu_metrics,
    inflight::{Inflight, Limit, Limits},
    metrics::{Metrics, WorkerFacts},
    step_observer::StepObserver,
    text::TextExecutor,
    worker::Worker,
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
    liveness: Readiness,
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
    listener: impl Into<Listener>,
) -> Result<RunningWorker, StartError> {
    let listener = listener.into();
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
    let footprint = Footprint::of(&model.config, model.quantization);
    let observer = StepObserver::new(metrics.steps.clone(), &id, footprint, config.trace_steps);
    let (engine, thread) = engine_thread::spawn(
        &id,
        Arc::clone(&model),
        engine_config,
        config.compute.speculation.clone(),
        limits.sequences.new + limits.sequences.resumed,
        observer,
    )?;
    let engine_ended = CancellationToken::new();
    let mut load = engine.load();
    // Waits until a GPU has compiled its kernels and recorded its graphs. The task below detects a
    // thread that has ended.
    let _ = load.changed().await;
    let ended = engine_ended.clone();
    let handle = engine.clone();

    let (progress, stall_timeout) = (model.progress.clone(), config.engine_stall_timeout);
    let inflight = Inflight::new(limits);
    // A call beyond the limits must be rejected, not wait at the client for a stream.
    let streams = limits.sequences.new + limits.sequences.resumed + EXTRA_STREAMS;
    let bounds = Bounds::new(&config.limits, u32::try_from(streams).ok());
    let model_name: Arc<str> = model_name.into();
    let worker = Worker {
        id: Arc::clone(&id),
        instance_id: uuid::Uuid::now_v7().simple().to_string().into(),
        model_name: Arc::clone(&model_name),
        templates: compile_templates(&model),
        model,
        engine,
        inflight: inflight.clone(),
        metrics: metrics.clone(),
        text: TextExecutor::start(&id)?,
        bounds: bounds.clone(),
        accept_routing: config.accept_routing,
        router_identity: config.router_identity.clone().into(),
    };
    let watches = CallLimit::new("WatchLoad calls", LOAD_WATCHES);
    let control = ControlService { worker: worker.clone(), config, watches };
    let (health, health_service) = HealthState::new(&SERVICES).await;
    let max_request = bounds.max_request_bytes();
    let mut routes = RoutesBuilder::default();
    routes
        .add_service(
            serve::compressed!(InferenceServer::new(worker))
                .max_decoding_message_size(max_request + MAX_RESUME_BYTES),
        )
        .add_service(
            serve::compressed!(ControlServer::new(control.clone()))
                .max_decoding_message_size(max_request),
        );
    let routes = serve::with_reflection(routes, health_service, &SERVICES)
        .map_err(|error| StartError::Reflection(error.to_string()))?;

    let stop = CancellationToken::new();
    let serving = serve::server(&bounds).add_routes(routes).serve_with_incoming_shutdown(
        serve::incoming(listener, &bounds),
        stop.clone().cancelled_owned(),
    );
    health.set_serving().await;
    let (engine_state, engine_states) = watch::channel(EngineState::Moving);
    let (live, liveness) = watch::channel(Ok(()));
    tokio::spawn(engine_watch::run(handle.load(), progress, stall_timeout, engine_state));
    let reporter = health.clone();
    let report =
        report_health(health.clone(), live, inflight.gate().draining().clone(), engine_states);
    tokio::spawn(async move {
        // The channel closes when the engine thread ends, which before a shutdown means a panic.
        let engine_ends = async { while load.changed().await.is_ok() {} };
        tokio::select! {
            () = engine_ends => {}
            () = report => {}
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
        liveness,
        stop,
        server: AbortOnDropHandle::new(tokio::spawn(serving)),
        engine: handle,
        thread,
        engine_ended,
    })
}

/// Compiles the chat templates of `model`, and reports one that cannot be used.
fn compile_templates(model: &Model) -> Arc<Renderer> {
    let templates = model.chat_templates.compile();
    match templates.check() {
        Ok(()) => {}
        Err(ChatError::Missing) => info!("the model has no chat template: `chat` is refused"),
        Err(error) => warn!(%error, "`chat` is refused"),
    }
    Arc::new(templates)
}

/// Reports a drain, for any cause, and an engine that makes no progress. Does not return.
async fn report_health(
    health: HealthState,
    live: watch::Sender<Result<(), String>>,
    draining: CancellationToken,
    mut engine: watch::Receiver<EngineState>,
) {
    loop {
        let state = *engine.borrow_and_update();
        // The value that is replaced does not matter.
        let _ = live.send_replace(state.liveness());
        let is_draining = draining.is_cancelled();
        match state.not_ready().or(is_draining.then_some(DRAINING)) {
            None => health.set_serving().await,
            Some(why) => health.set_not_serving(why).await,
        }
        tokio::select! {
            () = draining.cancelled(), if !is_draining => {}
            // The channel lives as long as the worker.
            changed = engine.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
        }
    }
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

    /// Registers the metrics of its listener.
    pub fn register_listener_metrics(&self, registry: &mut Registry) {
        self.control.worker.bounds.register(registry);
    }

    /// Returns whether the engine may still make progress, or why a restart is due.
    pub fn liveness(&self) -> Readiness {
        self.liveness.clone()
    }

    /// Registers the metrics of the worker, without those of its listener.
    pub fn register_metrics(&self, registry: &mut Registry) {
        let load = self.engine.load();
        let device = self.control.worker.model.network.device();
        let info = self.control.model_info();
        let facts = WorkerFacts {
            kv_blocks: info.capacity.as_ref().map_or(0, |capacity| capacity.kv_blocks as usize),
            device_class: info.device_class,
            device: device.map(|device| device.name.clone()).unwrap_or_default(),
            quantization: info.quantization,
            digest: info.digest,
        };
        let labelled = self.metrics.register(registry, &self.model_name, &self.id, &facts, load);
        if let Some(device) = device {
            gpu_metrics::register(labelled, device);
        }
    }

    /// Serves `stoker.v1.Admin` on `listener` until the returned value is dropped.
    pub async fn serve_admin(&self, listener: impl Into<Listener>) -> io::Result<AdminListener> {
        let inflight = self.inflight.clone();
        let drain = move |timeout| {
            let inflight = inflight.clone();
            async move { inflight.drain(timeout).await }.boxed()
        };
        AdminListener::start(listener.into(), Arc::new(drain), None).await
    }

    /// Returns the response to `GetModelInfo`.
    pub fn info(&self) -> ModelInfo {
        self.control.model_info()
    }

    /// Resolves when a drain begins, for any cause.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + use<> {
        self.inflight.gate().draining().clone().cancelled_owned()
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
        self.inflight.gate().cut_off();
        self.health.end_watches().await;
        self.stop.cancel();
        // Connections that are still open after the timeout are dropped.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.server).await;
        self.engine.stop().await;
        self.thread.join().await;
        unfinished
    }
}

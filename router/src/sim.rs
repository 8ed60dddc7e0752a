//! Load balancing without a network, for benchmarks and simulations. Not a stable interface.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{Stream, future};
use stoker_proto::v1::{GenerateRequest, GenerateResponse, Load, ModelInfo};
use stoker_shared::{ServiceError, deadline::Deadline, discovery::WorkerId};
use tokio::time::Instant;
use tonic::transport::Endpoint as Address;
use tower::{Service, ServiceExt};

use crate::{
    BalancingConfig,
    call::{Call, EventStream},
    endpoint::Dispatch,
    layer::balance::Balance,
    policy::Chooser,
    pool::{Pool, worker::Worker},
};

/// Response stream of a simulated worker.
pub type ResponseStream =
    Pin<Box<dyn Stream<Item = Result<GenerateResponse, ServiceError>> + Send>>;

/// Function that simulates the workers: takes the index of the worker and the request.
pub type RespondFn = Arc<dyn Fn(usize, GenerateRequest) -> ResponseStream + Send + Sync>;

/// The load balancer of one router over simulated workers.
pub struct Balancer {
    workers: Arc<[Arc<Worker>]>,
    layer: Balance<Simulated>,
}

impl Balancer {
    /// Balances over these workers. `seed` makes random draws reproducible. Requires a Tokio
    /// runtime.
    pub fn new(
        config: &BalancingConfig,
        seed: u64,
        infos: Vec<ModelInfo>,
        respond: RespondFn,
    ) -> Self {
        let worker = |info: ModelInfo| {
            let unconnected = Address::from_static("http://127.0.0.1:1").connect_lazy();
            let id = WorkerId::new(info.worker.clone());
            let (outstanding, liveness, health) = Default::default();
            Arc::new(Worker::new(id, unconnected, info, outstanding, liveness, health))
        };
        let workers: Arc<[_]> = infos.into_iter().map(worker).collect();
        let endpoint = Simulated { workers: Arc::clone(&workers), respond };
        let chooser = Arc::new(Chooser::new(config, seed));
        let layer = Balance::new(endpoint, Pool::fixed(&workers), chooser);
        Self { workers, layer }
    }

    /// Sends a request through the balancing layer.
    pub async fn generate(&self, request: GenerateRequest) -> Result<ResponseStream, ServiceError> {
        self.layer.clone().oneshot(call(request)).await
    }

    /// Selects a worker, reserves and releases its work, and returns the request.
    pub fn choose(&self, request: GenerateRequest) -> Result<GenerateRequest, ServiceError> {
        let call = call(request);
        self.layer.reserve(&call)?;
        Ok(*call.request)
    }

    /// Sets the load report of a worker.
    pub fn report(&self, worker: usize, load: Load) {
        if let Some(worker) = self.workers.get(worker) {
            worker.set_load(load);
        }
    }

    /// Returns the tokens that a worker has yet to prefill or generate for this router.
    pub fn outstanding(&self, worker: usize) -> u64 {
        self.workers.get(worker).map_or(0, |worker| worker.outstanding.tokens())
    }
}

fn call(request: GenerateRequest) -> Call {
    Call::new(request, Deadline::NEVER, Instant::now())
}

/// Replaces the endpoint that sends requests to workers.
#[derive(Clone)]
struct Simulated {
    workers: Arc<[Arc<Worker>]>,
    respond: RespondFn,
}

impl Service<Dispatch> for Simulated {
    type Response = EventStream;
    type Error = ServiceError;
    type Future = future::Ready<Result<EventStream, ServiceError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ServiceError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, Dispatch { call, worker, .. }: Dispatch) -> Self::Future {
        let number = self.workers.iter().position(|one| Arc::ptr_eq(one, &worker));
        let stream = number.map(|number| (self.respond)(number, *call.request));
        future::ready(stream.ok_or_else(|| ServiceError::unavailable("no such worker")))
    }
}

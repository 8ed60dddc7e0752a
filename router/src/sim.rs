//! Balancing without a network: what benches and simulations stand on. Not a stable interface.

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

/// What a worker answers.
pub type Events = Pin<Box<dyn Stream<Item = Result<GenerateResponse, ServiceError>> + Send>>;

/// A worker in place of a real one: gets its number and the request.
pub type Answer = Arc<dyn Fn(usize, GenerateRequest) -> Events + Send + Sync>;

/// The balancing of one router, over workers that are functions.
pub struct Balancer {
    workers: Arc<[Arc<Worker>]>,
    layer: Balance<Simulated>,
}

impl Balancer {
    /// Balances over these workers, with draws that `seed` decides. Needs a runtime of tokio.
    pub fn new(config: &BalancingConfig, seed: u64, infos: Vec<ModelInfo>, answer: Answer) -> Self {
        let worker = |info: ModelInfo| {
            let nowhere = Address::from_static("http://127.0.0.1:1").connect_lazy();
            let id = WorkerId::new(info.worker.clone());
            let (outstanding, life, health) = Default::default();
            Arc::new(Worker::new(id, nowhere, info, outstanding, life, health))
        };
        let workers: Arc<[_]> = infos.into_iter().map(worker).collect();
        let endpoint = Simulated { workers: Arc::clone(&workers), answer };
        let chooser = Arc::new(Chooser::new(config, seed));
        let layer = Balance::new(endpoint, Pool::fixed(&workers), chooser);
        Self { workers, layer }
    }

    /// Sends a request through the layer that balances.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Events, ServiceError> {
        self.layer.clone().oneshot(call(request)).await
    }

    /// Chooses a worker, reserves, and gives back both the reservation and the request.
    pub fn choose(&self, request: GenerateRequest) -> Result<GenerateRequest, ServiceError> {
        let call = call(request);
        self.layer.reserve(&call)?;
        Ok(*call.request)
    }

    /// A worker says what it has to do.
    pub fn report(&self, worker: usize, load: Load) {
        if let Some(worker) = self.workers.get(worker) {
            worker.set_load(load);
        }
    }

    /// Tokens that a worker has still to read or make for this router.
    pub fn outstanding(&self, worker: usize) -> u64 {
        self.workers.get(worker).map_or(0, |worker| worker.outstanding.tokens())
    }
}

fn call(request: GenerateRequest) -> Call {
    Call::new(request, Deadline::NEVER, Instant::now())
}

/// In place of the endpoint.
#[derive(Clone)]
struct Simulated {
    workers: Arc<[Arc<Worker>]>,
    answer: Answer,
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
        let stream = number.map(|number| (self.answer)(number, *call.request));
        future::ready(stream.ok_or_else(|| ServiceError::unavailable("no such worker")))
    }
}

//! `stoker.v1.Admin`: operations for operators, on a listener of its own.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use stoker_proto::{
    ADMIN,
    v1::{
        DrainRequest, DrainResponse, DrainWorkerRequest, DrainWorkerResponse, ListWorkersRequest,
        ListWorkersResponse,
        admin_server::{Admin, AdminServer},
    },
};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, service::RoutesBuilder};

use super::{Bounds, HealthState, LimitsConfig, incoming, server, with_reflection};
use crate::{ServiceError, duration};

/// Maximum number of connections. Separate from those of clients, which can therefore not lock out
/// operators.
const MAX_CONNECTIONS: u32 = 64;

/// Drains the process: rejects new calls, and waits until the running ones have ended or the
/// timeout has passed. Returns the number of calls that are still running.
pub type Drain = Arc<dyn Fn(Option<Duration>) -> BoxFuture<'static, usize> + Send + Sync>;

/// The workers of a router.
pub trait Workers: Send + Sync + 'static {
    /// Returns the state of every worker.
    fn list(&self) -> ListWorkersResponse;

    /// Sends no new requests to the worker with this id, address or instance id, and waits until
    /// the running ones have ended or the timeout has passed. Returns the number of requests that
    /// are still running there.
    fn drain(
        &self,
        worker: String,
        timeout: Option<Duration>,
    ) -> BoxFuture<'static, Result<usize, ServiceError>>;
}

/// The listener for operators. Dropping it closes it.
pub struct AdminListener {
    address: SocketAddr,
    _server: AbortOnDropHandle<()>,
}

impl AdminListener {
    /// Starts to serve on `listener`. Only a router has `workers`.
    pub async fn start(
        listener: TcpListener,
        drain: Drain,
        workers: Option<Arc<dyn Workers>>,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let config = LimitsConfig { max_connections: MAX_CONNECTIONS, ..LimitsConfig::default() };
        let bounds = Bounds::new(&config, None);
        let (health, health_service) = HealthState::new(&[ADMIN]).await;
        health.set_serving().await;
        let mut routes = RoutesBuilder::default();
        routes.add_service(AdminServer::new(Service { drain, workers }));
        let routes = with_reflection(routes, health_service, &[ADMIN]);
        let routes = routes.map_err(io::Error::other)?;
        let serving =
            server(&bounds).add_routes(routes).serve_with_incoming(incoming(listener, &bounds));
        let server = async {
            if let Err(error) = serving.await {
                tracing::warn!(%error, "--admin-listen is no longer served");
            }
        };
        Ok(Self { address, _server: AbortOnDropHandle::new(tokio::spawn(server)) })
    }

    /// Returns the address of the listener.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

struct Service {
    drain: Drain,
    workers: Option<Arc<dyn Workers>>,
}

impl Service {
    fn workers(&self, method: &str) -> Result<&dyn Workers, ServiceError> {
        let unsupported = || ServiceError::Unsupported(format!("{method} of a worker"));
        self.workers.as_deref().ok_or_else(unsupported)
    }
}

#[tonic::async_trait]
impl Admin for Service {
    async fn drain(
        &self,
        request: Request<DrainRequest>,
    ) -> Result<Response<DrainResponse>, Status> {
        let timeout = duration::from_peer("timeout", request.get_ref().timeout)?;
        tracing::info!(?timeout, "draining on request of an operator");
        let unfinished = count((self.drain)(timeout).await);
        Ok(Response::new(DrainResponse { unfinished }))
    }

    async fn list_workers(
        &self,
        _: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        Ok(Response::new(self.workers("ListWorkers")?.list()))
    }

    async fn drain_worker(
        &self,
        request: Request<DrainWorkerRequest>,
    ) -> Result<Response<DrainWorkerResponse>, Status> {
        let workers = self.workers("DrainWorker")?;
        let DrainWorkerRequest { worker, timeout } = request.into_inner();
        let timeout = duration::from_peer("timeout", timeout)?;
        let unfinished = count(workers.drain(worker, timeout).await?);
        Ok(Response::new(DrainWorkerResponse { unfinished }))
    }
}

fn count(unfinished: usize) -> u32 {
    u32::try_from(unfinished).unwrap_or(u32::MAX)
}

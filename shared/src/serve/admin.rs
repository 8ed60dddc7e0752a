//! `stoker.v1.Admin`: operations for operators, on a listener of its own.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use stoker_proto::{
    ADMIN,
    v1::{
        DrainRequest, DrainResponse, DrainWorkerRequest, DrainWorkerResponse, ListRequestsRequest,
        ListRequestsResponse, ListWorkersRequest, ListWorkersResponse,
        admin_server::{Admin, AdminServer},
    },
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, service::RoutesBuilder};

use super::{Bounds, HealthState, LimitsConfig, Listener, incoming, server, with_reflection};
use crate::{ServiceError, duration};

/// Maximum number of connections. Separate from those of clients, which can therefore not lock out
/// operators.
const MAX_CONNECTIONS: u32 = 64;

/// Number of requests in a list, by default and at most, so that it fits into one message.
const DEFAULT_REQUESTS: u32 = 100;
const MAX_REQUESTS: u32 = 256;

/// Drains the process: rejects new calls, and waits until the running ones have ended or the
/// timeout has passed. Returns the number of calls that are still running.
pub type Drain = Arc<dyn Fn(Option<Duration>) -> BoxFuture<'static, usize> + Send + Sync>;

/// What operators ask of a router alone.
pub trait RouterAdmin: Send + Sync + 'static {
    /// Returns the state of every worker.
    fn workers(&self) -> ListWorkersResponse;

    /// Returns the running and the recent requests that `wanted` describes.
    fn requests(&self, wanted: &RequestFilter) -> ListRequestsResponse;

    /// Sends no new requests to the worker with this id, address or instance id, and waits until
    /// the running ones have ended or the timeout has passed. Returns the number of requests that
    /// are still running there.
    fn drain_worker(
        &self,
        worker: String,
        timeout: Option<Duration>,
    ) -> BoxFuture<'static, Result<usize, ServiceError>>;
}

/// The requests that an operator wants to see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestFilter {
    /// Only requests with this id.
    pub request_id: Option<String>,
    /// Only requests that took at least this long.
    pub min_duration: Duration,
    /// Maximum number of requests.
    pub limit: usize,
}

impl RequestFilter {
    fn from_peer(request: ListRequestsRequest) -> Result<Self, ServiceError> {
        let ListRequestsRequest { request_id, min_duration, limit } = request;
        let limit = match limit {
            0 => DEFAULT_REQUESTS,
            limit if limit <= MAX_REQUESTS => limit,
            limit => {
                let why = format!("is {limit}, the maximum is {MAX_REQUESTS}");
                return Err(ServiceError::invalid("limit", why));
            }
        };
        Ok(Self {
            request_id: (!request_id.is_empty()).then_some(request_id),
            min_duration: duration::from_peer("min_duration", min_duration)?.unwrap_or_default(),
            limit: limit as usize,
        })
    }
}

/// The listener for operators. Dropping it closes it.
pub struct AdminListener {
    address: SocketAddr,
    _server: AbortOnDropHandle<()>,
}

impl AdminListener {
    /// Starts to serve on `listener`. `router` is set if the process is one.
    pub async fn start(
        listener: Listener,
        drain: Drain,
        router: Option<Arc<dyn RouterAdmin>>,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let config = LimitsConfig { max_connections: MAX_CONNECTIONS, ..LimitsConfig::default() };
        let bounds = Bounds::new(&config, None);
        let (health, health_service) = HealthState::new(&[ADMIN]).await;
        health.set_serving().await;
        let mut routes = RoutesBuilder::default();
        routes.add_service(AdminServer::new(Service { drain, router }));
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
    router: Option<Arc<dyn RouterAdmin>>,
}

impl Service {
    fn router(&self, method: &str) -> Result<&dyn RouterAdmin, ServiceError> {
        let unsupported = || ServiceError::Unsupported(format!("{method} of a worker"));
        self.router.as_deref().ok_or_else(unsupported)
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
        Ok(Response::new(self.router("ListWorkers")?.workers()))
    }

    async fn list_requests(
        &self,
        request: Request<ListRequestsRequest>,
    ) -> Result<Response<ListRequestsResponse>, Status> {
        let router = self.router("ListRequests")?;
        let wanted = RequestFilter::from_peer(request.into_inner())?;
        Ok(Response::new(router.requests(&wanted)))
    }

    async fn drain_worker(
        &self,
        request: Request<DrainWorkerRequest>,
    ) -> Result<Response<DrainWorkerResponse>, Status> {
        let router = self.router("DrainWorker")?;
        let DrainWorkerRequest { worker, timeout } = request.into_inner();
        let timeout = duration::from_peer("timeout", timeout)?;
        let unfinished = count(router.drain_worker(worker, timeout).await?);
        Ok(Response::new(DrainWorkerResponse { unfinished }))
    }
}

fn count(unfinished: usize) -> u32 {
    u32::try_from(unfinished).unwrap_or(u32::MAX)
}

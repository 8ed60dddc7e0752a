//! The entrance of the stack for gRPC and HTTP, and `stoker.v1.Inference` on the router.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use stoker_proto::v1::{GenerateRequest, GenerateResponse, inference_server::Inference};
use stoker_shared::{
    ServiceError,
    deadline::{Deadline, arrival_time},
    drain::DrainGate,
    serve::{self, Bounds, Charge},
    telemetry::trace::TraceSpan,
};
use tonic::{Request, Response, Status};
use tower::ServiceExt;

use crate::{
    call::{Call, Memory},
    metrics::Metrics,
    stack::Stack,
    tenant::{Account, Tenants},
};

/// The gRPC service.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) stack: Stack,
    pub(crate) gate: DrainGate,
    pub(crate) tenants: Tenants,
    pub(crate) bounds: Bounds,
    pub(crate) metrics: Metrics,
}

impl Server {
    /// Passes a request over gRPC or HTTP to the stack, and returns its events once a worker has
    /// accepted it.
    pub(crate) async fn open(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<serve::Response<GenerateResponse>, ServiceError> {
        let mut malformed = None;
        let deadline =
            Deadline::of(&request).map_err(|error| malformed = Some(error)).unwrap_or_default();
        let account = request.extensions().get::<Account>().cloned();
        let tenant = match &account {
            Some(account) => Ok(Arc::clone(account.name())),
            None => self.tenants.of(request.metadata()),
        };
        let tenant = tenant.map_err(|error| malformed = Some(error)).unwrap_or_default();
        let (arrived, trace) = (arrival_time(&request), TraceSpan::of_caller(request.metadata()));
        let charge = Charge::of(&request);
        let request = request.into_inner();
        let memory = Memory::of(charge, &request).map_err(|error| {
            self.metrics.shed("memory");
            malformed = Some(error);
        });
        let call = Call::new(request, deadline, arrived);
        let memory = memory.unwrap_or_default();
        let call = Call { malformed, trace, tenant, account, memory, ..call };
        let events = self.stack.clone().oneshot(call).await?.map_err(Status::from).boxed();
        let undelivered = Box::new(self.gate.undelivered());
        Ok(self.bounds.backpressure().watch(events, undelivered))
    }
}

#[tonic::async_trait]
impl Inference for Server {
    type GenerateStream = serve::Response<GenerateResponse>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        Ok(Response::new(self.open(request).await?))
    }
}

//! Authenticates calls by their API keys, before anything of their bodies is read.

use std::net::IpAddr;

use axum::{body::Body, extract::State, http::Request, middleware::Next, response::Response};
use stoker_shared::{
    ServiceError,
    serve::{Charge, Peer},
};
use tonic::Status;

use crate::tenant::ApiKeys;

/// Methods without a key: probes and tools have none.
const OPEN_SERVICES: [&str; 2] = ["/grpc.health.v1.Health/", "/grpc.reflection."];

/// Admits a gRPC call with a valid key.
pub(crate) async fn grpc(
    State(keys): State<ApiKeys>,
    mut request: Request<Body>,
    next: Next,
) -> Response {
    let path = request.uri().path();
    if OPEN_SERVICES.iter().any(|service| path.starts_with(service)) {
        return next.run(request).await;
    }
    match identify(&keys, &mut request).await {
        Ok(()) => next.run(request).await,
        Err(error) => Status::from(error).into_http::<Body>(),
    }
}

/// Adds the tenant to the extensions of a request, and charges the memory of its body to it.
pub(crate) async fn identify(
    keys: &ApiKeys,
    request: &mut Request<Body>,
) -> Result<(), ServiceError> {
    let peer: Option<IpAddr> =
        request.extensions().get::<Peer>().map(|peer| peer.address().ip().to_canonical());
    let account = keys.authenticate(request.headers(), peer).await?;
    // Below this, a log or a trace of headers has no key.
    request.headers_mut().remove(http::header::AUTHORIZATION);
    if let Some(charge) = request.extensions().get::<Charge>() {
        charge.move_to(account.memory())?;
    }
    request.extensions_mut().insert(account);
    Ok(())
}

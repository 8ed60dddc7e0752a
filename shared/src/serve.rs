//! How both processes listen: bind with a clear error, a server with sane limits, health, reflection.

pub mod admin;
mod backpressure;
mod bind;
mod bounds;
mod call_limit;
mod connection;
mod health;
mod http;
mod incoming;
mod limits;
mod listen_address;
mod peer;
mod request_body;
mod requests;

use std::time::Duration;

use stoker_proto::FILE_DESCRIPTOR_SET;
use tonic::{
    server::NamedService,
    service::{Routes, RoutesBuilder},
    transport::Server,
};
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::layer::util::{Identity, Stack};

pub use backpressure::{Backpressure, Held, Response};
pub use bind::{BindError, bind, bind_for};
pub use bounds::Bounds;
pub use call_limit::CallLimit;
pub use connection::Connection;
pub use health::{HealthState, Readiness};
pub use http::HttpListener;
pub use incoming::incoming;
pub use limits::LimitsConfig;
pub use listen_address::{ListenAddress, NotAListenAddress};
pub use peer::Peer;
pub use requests::{Charge, Requests, RequestsLayer};

/// The largest request that is read, in bytes. A longer one is refused by gRPC with OUT_OF_RANGE.
pub const MAX_REQUEST_BYTES: usize = 4 << 20;
/// The same on a worker, which a router also tells what there is of an answer: sixteen continuations of some
/// hundred thousand tokens.
pub const MAX_ROUTED_BYTES: usize = MAX_REQUEST_BYTES + (32 << 20);

/// Streams of one connection that may be cancelled before they were looked at. h2 closes the connection
/// beyond 20, which a router with many impatient clients sends in one packet.
const MAX_EARLY_RESETS: usize = 1_024;
/// Pings find a peer that is gone without a word.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A server with the limits and keep-alives that tonic leaves off.
pub fn server(bounds: &Bounds) -> Server<Stack<RequestsLayer, Identity>> {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(Some(bounds.streams_per_connection()))
        .http2_max_pending_accept_reset_streams(Some(MAX_EARLY_RESETS))
        .layer(RequestsLayer(bounds.clone()))
}

/// Collects the services of a listener, with those of `names` among them, and adds reflection, v1 and the v1alpha that
/// older clients ask for.
pub fn with_reflection<H: Health>(
    mut routes: RoutesBuilder,
    health: HealthServer<H>,
    names: &[&str],
) -> Result<Routes, tonic_reflection::server::Error> {
    let builder = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(HealthServer::<H>::NAME);
        names.iter().fold(builder, |builder, name| builder.with_service_name(*name))
    };
    routes
        .add_service(health)
        .add_service(builder().build_v1()?)
        .add_service(builder().build_v1alpha()?);
    Ok(routes.routes())
}

/// Lets a service take compressed requests. A macro, since every generated service is a type of its own.
#[macro_export]
macro_rules! compressed {
    ($service:expr) => {{
        let service = $service.accept_compressed(tonic::codec::CompressionEncoding::Gzip);
        #[cfg(feature = "zstd")]
        let service = service.accept_compressed(tonic::codec::CompressionEncoding::Zstd);
        service
    }};
}
pub use compressed;

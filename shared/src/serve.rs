//! Serving: listeners, servers with limits, health, and reflection.

mod accepted;
pub mod admin;
mod backpressure;
mod bind;
mod bounds;
mod call_limit;
mod charge;
mod connection;
mod health;
mod http;
mod incoming;
mod limits;
mod listen_address;
mod listener;
mod open;
mod peer;
mod request_body;
mod requests;

use stoker_proto::FILE_DESCRIPTOR_SET;
use tonic::{
    server::NamedService,
    service::{Routes, RoutesBuilder},
    transport::Server,
};
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::layer::util::{Identity, Stack};

pub use backpressure::{Backpressure, Response, ResponseGuard};
pub use bind::{BindError, bind, bind_for};
pub use bounds::Bounds;
pub use call_limit::CallLimit;
pub use charge::Charge;
pub use connection::Connection;
pub use health::{HealthState, Readiness};
pub use http::HttpListener;
pub use incoming::incoming;
pub use limits::LimitsConfig;
pub use listen_address::{ListenAddress, NotAListenAddress};
pub use listener::Listener;
pub use open::open;
pub use peer::Peer;
use request_body::Framing;
pub use requests::{RequestAccounting, RequestAccountingLayer, SizeLimit};

/// Maximum size of a message that every client of gRPC accepts, in bytes.
pub const MAX_RESPONSE_BYTES: usize = 4 << 20;
/// What a router sends to a worker beyond the request, in bytes: the tokens of a response to resume,
/// up to sixteen choices of some hundred thousand tokens.
pub const MAX_RESUME_BYTES: usize = 32 << 20;

/// Returns a server builder with the limits and keep-alives that tonic does not set.
pub fn server(bounds: &Bounds) -> Server<Stack<RequestAccountingLayer, Identity>> {
    bounded(bounds, Framing::Grpc)
}

/// Returns the same for an API over HTTP/1.1 and HTTP/2, whose handlers read no more of a body than
/// [`SizeLimit`] says.
pub fn http_server(bounds: &Bounds) -> Server<Stack<RequestAccountingLayer, Identity>> {
    bounded(bounds, Framing::Http(bounds.max_request_bytes())).accept_http1(true)
}

fn bounded(bounds: &Bounds, framing: Framing) -> Server<Stack<RequestAccountingLayer, Identity>> {
    let config = bounds.config();
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(config.keepalive_interval))
        .http2_keepalive_timeout(Some(config.keepalive_timeout))
        .max_concurrent_streams(Some(bounds.streams_per_connection()))
        .http2_max_header_list_size(Some(config.max_header_size.as_u64() as u32))
        // With the default of 20, h2 would close the connection of a router that cancels many
        // requests in one packet.
        .http2_max_pending_accept_reset_streams(Some(config.max_pending_resets as usize));
    if let Some(age) = config.max_connection_age.filter(|age| !age.is_zero()) {
        // With a grace, tonic would send no GOAWAY: `Connection` has it.
        server = server.max_connection_age(age);
    }
    server.layer(RequestAccountingLayer { bounds: bounds.clone(), framing })
}

/// Adds health and reflection (v1, and v1alpha for older clients) to the services of a listener,
/// whose names are `names`.
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

/// Enables compressed requests for a service. A macro, since every generated service has a type of
/// its own.
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

//! How both processes listen: bind with a clear error, a server with sane limits, health, reflection.

mod bind;
mod health;
mod listen_address;

use std::{io, time::Duration};

use futures::{Stream, TryStreamExt};
use stoker_proto::FILE_DESCRIPTOR_SET;
use tokio::net::{TcpListener, TcpStream};
use tonic::{
    server::NamedService,
    service::{InterceptorLayer, Routes, RoutesBuilder},
    transport::{Server, server::TcpIncoming},
};
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::layer::util::{Identity, Stack};

use crate::{batched::Batched, deadline};
pub use bind::{BindError, bind, bind_for};
pub use health::{HealthState, Readiness};
pub use listen_address::{ListenAddress, NotAListenAddress};

/// The largest request that is read, in bytes. A longer one is refused by gRPC with OUT_OF_RANGE.
pub const MAX_REQUEST_BYTES: usize = 4 << 20;
/// The same on a worker, which a router also tells what there is of an answer: sixteen continuations of some
/// hundred thousand tokens.
pub const MAX_ROUTED_BYTES: usize = MAX_REQUEST_BYTES + (32 << 20);

/// Streams that one connection may have open; more wait at the client.
const MAX_STREAMS_PER_CONNECTION: u32 = 16_384;
/// Streams of one connection that may be cancelled before they were looked at. h2 closes the connection
/// beyond 20, which a router with many impatient clients sends in one packet.
const MAX_EARLY_RESETS: usize = 1_024;
/// Pings find a peer that is gone without a word.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections of `listener`, without Nagle's delay: tokens are small and late ones are felt. Those that are
/// ready at once leave in one write.
pub fn incoming(listener: TcpListener) -> impl Stream<Item = io::Result<Batched<TcpStream>>> {
    TcpIncoming::from(listener).with_nodelay(Some(true)).map_ok(Batched::new)
}

/// Notes when a request arrives: its deadline counts from there.
pub type NoteArrival = fn(tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status>;

/// A server with the limits and keep-alives that tonic leaves off.
pub fn server() -> Server<Stack<InterceptorLayer<NoteArrival>, Identity>> {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(Some(MAX_STREAMS_PER_CONNECTION))
        .http2_max_pending_accept_reset_streams(Some(MAX_EARLY_RESETS))
        .layer(InterceptorLayer::new(deadline::note_arrival as NoteArrival))
}

/// Collects the services of a process and adds reflection, v1 and the v1alpha that older clients ask for.
pub fn with_reflection<H: Health>(
    mut routes: RoutesBuilder,
    health: HealthServer<H>,
) -> Result<Routes, tonic_reflection::server::Error> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    debug_assert_eq!(HealthServer::<H>::NAME, "grpc.health.v1.Health");
    routes
        .add_service(health)
        .add_service(builder().build_v1()?)
        .add_service(builder().build_v1alpha()?);
    Ok(routes.routes())
}

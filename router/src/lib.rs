//! The router: balances Generate calls over workers.
//!
//! `stack` is the way of a request, `pool` the workers it may go to, `server` the gRPC around both.

mod call;
mod config;
mod endpoint;
mod layer;
mod memory;
mod metrics;
mod pool;
mod running;
mod server;
mod stack;
mod tenant;

pub use config::{HealthConfig, RouterConfig};
pub use layer::resume::ResumeConfig;
pub use running::{RunningRouter, StartError, WorkerView, start};

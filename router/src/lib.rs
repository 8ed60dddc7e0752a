//! The router: balances Generate calls over workers.
//!
//! `stack` is the way of a request, `pool` the workers it may go to, `server` the gRPC around both.

mod average;
mod call;
mod config;
mod endpoint;
mod layer;
mod metrics;
mod policy;
mod pool;
mod running;
mod server;
#[doc(hidden)]
pub mod sim;
mod stack;

pub use config::{BalancingConfig, RouterConfig};
pub use policy::Policy;
pub use running::{RunningRouter, StartError, WorkerView, start};

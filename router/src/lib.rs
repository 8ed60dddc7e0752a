//! The router: balances Generate calls over workers.
//!
//! `stack` is the path of a request, `pool` the workers, `server` the gRPC service in front of
//! both.

mod admin;
mod call;
mod config;
mod control;
mod endpoint;
mod ewma;
mod handle;
mod layer;
mod metrics;
mod policy;
mod pool;
mod requests;
mod server;
#[doc(hidden)]
pub mod sim;
mod stack;
mod tenant;

pub use config::{BalancingConfig, HealthConfig, RequestLogConfig, RouterConfig};
pub use handle::{RunningRouter, StartError, WorkerView, start};
pub use layer::resume::ResumeConfig;
pub use policy::Policy;
pub use tenant::{PriorityError, TenantPriority};

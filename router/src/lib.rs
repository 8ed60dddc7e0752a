//! The router: balances Generate calls over workers.
//!
//! `stack` is the path of a request, `pool` the workers, `resume` what happens when one is lost,
//! `server` the gRPC service in front.
//!
//! ```
//! use stoker_router::RouterConfig;
//! use stoker_shared::discovery::Registry;
//! use tokio::net::TcpListener;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let workers = Registry::default();
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let router = stoker_router::start(RouterConfig::default(), workers.watch(), listener).await?;
//! assert!(router.workers().is_empty(), "none is registered yet");
//! # Ok(())
//! # }
//! ```

mod admin;
mod authenticate;
mod call;
mod collectors;
mod config;
mod control;
mod endpoint;
mod ewma;
mod handle;
mod layer;
mod metrics;
mod openai;
mod policy;
mod pool;
mod requests;
mod resume;
mod server;
#[doc(hidden)]
pub mod sim;
mod stack;
mod tenant;
#[cfg(test)]
mod tests;

pub use config::{
    AliasError, BalancingConfig, HealthConfig, ModelAlias, Policy, RequestLogConfig, ResumeConfig,
    RouterConfig,
};
pub use handle::{RunningRouter, StartError, WorkerView, start};
#[cfg(fuzzing)]
#[doc(hidden)]
pub use openai::fuzz;
pub use tenant::{
    KeyEntry, KeyFile, KeyFileError, KeyHash, NewKey, PriorityError, TenantArgs, TenantPolicy,
    TenantPriority,
};

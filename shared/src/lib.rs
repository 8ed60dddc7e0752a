//! Code that the programs share: configuration, errors, discovery, telemetry, deadlines,
//! validation, serving, and a client.

pub mod backoff;
pub mod batched;
pub mod client;
pub mod config;
pub mod count;
pub mod deadline;
pub mod discovery;
pub mod duration;
pub mod error;
pub mod guarded;
pub mod health_check;
pub mod host;
pub mod memory;
pub mod serve;
pub mod shutdown;
pub mod telemetry;
pub mod termination;
pub mod validate;

pub use error::ServiceError;

/// The version that `--version`, `GetModelInfo` and logs show.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

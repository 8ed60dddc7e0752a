//! Code that the programs share: configuration, errors, discovery, telemetry, deadlines,
//! validation, serving, and a client.
//!
//! ```
//! use futures::StreamExt;
//! use stoker_shared::{
//!     ServiceError,
//!     discovery::{Candidate, Change, Registry, WorkerId},
//!     duration,
//! };
//! use tonic::{Code, Status};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), String> {
//! // A worker is found as long as its registration is kept.
//! let registry = Registry::default();
//! let mut workers = registry.watch();
//! let candidate = Candidate::named(WorkerId::new("w"), "127.0.0.1:50052".into());
//! let registration = registry.register(candidate.clone());
//! assert_eq!(workers.next().await, Some(Change::Insert(candidate)));
//! drop(registration);
//! assert_eq!(workers.next().await, Some(Change::Remove(WorkerId::new("w"))));
//!
//! // Errors are typed, and become a status where they leave the process.
//! let timeout = duration::parse("90s")?;
//! let error = ServiceError::Internal(format!("no token for {timeout:?}"));
//! assert_eq!(Status::from(error).code(), Code::Internal);
//! # Ok(())
//! # }
//! ```

pub mod backoff;
pub mod batched;
pub mod cli;
pub mod client;
pub mod config;
pub mod count;
pub mod deadline;
pub mod discovery;
pub mod drain;
pub mod duration;
pub mod error;
mod excerpt;
pub mod guarded;
pub mod health_check;
pub mod host;
pub mod memory;
pub mod metrics;
pub mod names;
pub mod observed;
pub mod reload;
pub mod serve;
pub mod shutdown;
pub mod telemetry;
pub mod termination;
pub mod tls;
pub mod validate;

pub use error::ServiceError;

/// The version that `--version`, `GetModelInfo` and logs show.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

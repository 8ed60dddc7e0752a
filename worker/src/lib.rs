//! The worker: one model on one device behind gRPC.
//!
//! A call arrives at [`service`], is validated and tokenised in [`admit`] and submitted to the
//! thread that owns the device in [`engine_thread`]. Its tokens stream back through
//! [`response_stream`], and [`request_log`] reports its outcome.
//!
//! ```
//! use std::sync::Arc;
//! use stoker_worker::{ModelSource, WorkerConfig};
//! use tokio::net::TcpListener;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = WorkerConfig::default();
//! let model = Arc::new(stoker_worker::load(&ModelSource::Bundled, &config, 1)?);
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let worker = stoker_worker::start(config, model, "storyteller".into(), None, listener).await?;
//! assert_eq!(worker.info().model, "storyteller");
//! # Ok(())
//! # }
//! ```

mod admission_error;
pub mod admit;
#[cfg(feature = "etcd")]
pub mod announce;
mod chat;
pub mod config;
pub mod control;
pub mod engine_thread;
pub mod engine_watch;
mod gpu_metrics;
pub mod handle;
pub mod inflight;
pub mod loading;
pub mod metrics;
pub mod request_log;
pub mod request_trace;
pub mod response_stream;
mod routing;
pub mod service;
pub mod start_trace;
pub mod step_observer;
mod text;
pub mod threads;
pub mod worker;

pub use config::WorkerConfig;
pub use handle::{RunningWorker, StartError, start};
pub use loading::{LoadError, load};
pub use stoker_loader::ModelSource;

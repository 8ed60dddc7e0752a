//! The worker: one model on one device behind gRPC.
//!
//! A call arrives at [`service`], is validated and tokenised in [`admit`] and submitted to the
//! thread that owns the device in [`engine_thread`]. Its tokens stream back through
//! [`response_stream`], and [`request_log`] reports its outcome.

pub mod admit;
#[cfg(feature = "etcd")]
pub mod announce;
pub mod bench;
pub mod command_error;
pub mod config;
pub mod control;
pub mod engine_thread;
pub mod engine_watch;
pub mod eval;
pub mod gpu;
pub mod handle;
pub mod inflight;
pub mod loading;
pub mod memory;
pub mod metrics;
pub mod request_log;
pub mod request_trace;
pub mod response_stream;
pub mod roofline;
mod routing;
pub mod service;
pub mod simulate;
pub mod start_trace;
pub mod step_observer;
mod text;
pub mod threads;

pub use config::WorkerConfig;
pub use handle::{RunningWorker, StartError, start};
pub use loading::{LoadError, ModelSource, load};

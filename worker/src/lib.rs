//! The worker: one model on one device behind gRPC.
//!
//! A call comes in at [`service`], is checked and tokenised in [`admit`], handed to the thread that owns the
//! device in [`engine_thread`], and its tokens stream back through [`answer`]. What came of it is told by [`record`].

pub mod admit;
#[cfg(feature = "etcd")]
pub mod announce;
pub mod answer;
pub mod bench;
pub mod config;
pub mod control;
pub mod engine_thread;
pub mod eval;
pub mod failure;
pub mod gpu;
pub mod inflight;
pub mod loading;
pub mod memory;
pub mod metrics;
pub mod record;
pub mod roofline;
mod routing;
pub mod running;
pub mod service;
pub mod simulate;
mod text;

pub use config::WorkerConfig;
pub use loading::{LoadError, ModelSource, load};
pub use running::{RunningWorker, StartError, start};

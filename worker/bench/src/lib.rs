//! Commands of the worker that measure, without a network.
//!
//! [`mod@bench`] measures the speed of the engine: `workloads` has a file for each thing to measure,
//! and the list of them. [`gpu_check`] checks a GPU and measures it, [`roofline`] computes the
//! highest speed that a machine allows, and [`eval`] measures how well a model predicts a text.
//! They share `harness`, which steps an engine and takes the time, and [`models`], which makes
//! models without a download.
//!
//! ```
//! use stoker_bench::roofline::{self, RooflineArgs};
//!
//! let args: RooflineArgs = stoker_shared::config::defaults();
//! let report = roofline::compute(&args)?;
//! println!("{report}");
//! # Ok::<(), stoker_bench::Error>(())
//! ```

pub mod bench;
mod decimal;
mod error;
pub mod eval;
pub mod gpu_check;
mod harness;
mod json_file;
pub mod models;
pub mod roofline;
mod workloads;

pub use error::{CacheError, Error};

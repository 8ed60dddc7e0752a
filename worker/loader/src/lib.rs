//! From the flags of a model to a model on a device.
//!
//! [`ModelSource`] says where a model comes from, [`config`] how it computes. [`device`] opens the
//! device, [`open`] the files, and [`read`] loads the weights; [`memory`] tells before that whether
//! they fit. [`simulated`] makes models without weights.
//!
//! ```
//! use stoker_loader::{ModelSource, config::DeviceConfig};
//!
//! let source: ModelSource = "storyteller".parse()?;
//! let files = stoker_loader::open(&source)?;
//! println!("{} layers", files.config().num_layers);
//! assert!(stoker_loader::device(&DeviceConfig::default()).is_ok());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod config;
mod load;
pub mod memory;
pub mod simulated;
mod source;

pub use load::{LoadError, device, format_timings, open, read, set_draft};
pub use source::{BUNDLED, ModelSource};

//! The bundled story model, and with the feature `train` its training pipeline.
//!
//! Without features this crate only has the bundled files and no dependencies. The feature `corpus`
//! adds the training and evaluation stories.
//!
//! ```
//! use storyteller::{file, model};
//!
//! let config = file(model(), "config.json").ok_or("the model has a config.json")?;
//! assert!(config.starts_with(b"{"));
//! # Ok::<(), &str>(())
//! ```

mod bundle;
#[cfg(feature = "corpus")]
pub mod corpus;
#[cfg(feature = "train")]
pub mod make;
#[cfg(feature = "corpus")]
pub mod rng;

pub use bundle::{Files, draft, file, model};

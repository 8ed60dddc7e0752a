//! The bundled story model, and with the feature `train` its training pipeline.
//!
//! Without features this crate only has the bundled files and no dependencies. The feature `corpus`
//! adds the training and evaluation stories.

mod bundle;
#[cfg(feature = "corpus")]
pub mod corpus;
#[cfg(feature = "train")]
pub mod make;
#[cfg(feature = "corpus")]
pub mod rng;

pub use bundle::{Files, draft, file, model};

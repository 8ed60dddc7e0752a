//! The bundled story model, and with the feature `train` everything that makes it.
//!
//! Without features this crate is the bundled files and depends on nothing. The feature `corpus` adds the
//! stories that models learn from and are measured on.

mod bundle;
#[cfg(feature = "corpus")]
pub mod corpus;
#[cfg(feature = "corpus")]
pub mod dice;
#[cfg(feature = "train")]
pub mod make;

pub use bundle::{Files, draft, file, model};

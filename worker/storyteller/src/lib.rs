//! The bundled story model, and with the feature `train` everything that makes it.
//!
//! Without that feature this crate is the bundled files and depends on nothing.

mod bundle;
#[cfg(feature = "train")]
pub mod make;

pub use bundle::{Files, draft, file, model};

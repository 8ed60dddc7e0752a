//! Models that are made here, without a download.
//!
//! [`random`] writes random weights of a real shape, `padded` the bundled model with the size of a
//! larger one, for measurements that need predictable text.

mod format;
pub(crate) mod padded;
pub mod random;
mod target;

pub use format::Format;
pub use random::Shape;
pub use target::Target;

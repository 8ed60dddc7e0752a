//! Speculation as a whole.

mod machine;
pub(super) mod measured;
mod simulated;

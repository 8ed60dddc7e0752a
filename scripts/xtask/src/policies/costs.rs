//! What a step of a simulated worker costs, in seconds.

/// A step.
pub(crate) const STEP_OVERHEAD: f64 = 6e-3;
/// A prefill token.
pub(crate) const PREFILL_TOKEN: f64 = 40e-6;
/// A decoding sequence and step.
pub(crate) const DECODE_TOKEN: f64 = 100e-6;

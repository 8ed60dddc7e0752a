//! Weights in 4 bits, as files and devices exchange them.
//!
//! A weight is its output's scale times a whole number: a step from -8 to 7, times the multiplier of
//! its group of [`GROUP`] adjacent inputs. Such a number is at most 120 in magnitude, so that
//! products with it are exact sums of integers, like those in 8 bits.

use crate::int8::Int8;

/// Number of adjacent inputs of an output that share a multiplier. The last group of an output may
/// have fewer.
pub const GROUP: usize = 32;
/// Largest magnitude of a multiplier.
pub const MAX_MULTIPLIER: i8 = 15;
/// Lowest and highest step.
pub const STEPS: [i8; 2] = [-8, 7];
/// Largest magnitude of a step times its multiplier.
pub const MAX_VALUE: i8 = 120;

/// A matrix in 4 bits as read from a file, `[n, k]` in rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Int4 {
    /// Steps times multipliers, from -[`MAX_VALUE`] to [`MAX_VALUE`], and the scale of each output.
    /// A device without products in 4 bits multiplies these.
    pub multiplied: Int8,
    /// `[n, k.div_ceil(GROUP)]`: magnitudes from 1 to [`MAX_MULTIPLIER`], of either sign.
    pub multipliers: Vec<i8>,
}

//! Rounding to 8 bits.

use crate::{
    cpu::{
        isa::{Isa, Kernel},
        simd::Simd,
    },
    int8::Int8,
};

impl Int8 {
    /// Rounds each row of `row_len` to 127 steps on both sides of zero, up to its largest
    /// magnitude.
    pub fn quantize(values: &[f32], row_len: usize) -> Self {
        let mut to = Self { values: vec![0; values.len()], scales: Vec::new() };
        for (from, to_row) in values.chunks_exact(row_len).zip(to.values.chunks_exact_mut(row_len))
        {
            to.scales.push(quantize_row(from, to_row));
        }
        to
    }
}

/// Rounds `row` to 127 steps on both sides of zero, up to its largest magnitude. Returns the size
/// of a step.
///
/// All elements must be finite.
pub fn quantize_row(row: &[f32], to: &mut [i8]) -> f32 {
    Isa::best().run(QuantizeRow { row, to })
}

struct QuantizeRow<'a> {
    row: &'a [f32],
    to: &'a mut [i8],
}

impl Kernel for QuantizeRow<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> f32 {
        let largest = largest(self.row);
        round(self.row, largest, self.to);
        largest / 127.0
    }
}

/// Returns the largest magnitude, or NaN if an element is NaN.
///
/// Magnitudes are compared as integers. This gives the same order, with infinity above all numbers
/// and NaN above infinity, and vectorises.
#[inline(always)]
pub(in crate::cpu) fn largest(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<32>();
    let mut lanes = [0u32; 32];
    let magnitude = |x: f32| x.to_bits() & !(1 << 31);
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = magnitude(*x).max(*lane);
        }
    }
    let rest = rest.iter().map(|x| magnitude(*x));
    f32::from_bits(lanes.iter().copied().chain(rest).fold(0, u32::max))
}

/// Rounds to 127 steps on both sides of zero, up to `largest`.
#[inline(always)]
pub(super) fn round(x: &[f32], largest: f32, to: &mut [i8]) {
    /// Added to a small number, leaves the nearest integer (ties to even) in the lowest bits.
    const WHOLE: f32 = 12_582_912.0;
    let steps = 127.0 / largest;
    for (to, x) in to.iter_mut().zip(x) {
        // A `largest` near zero may produce values out of range. NaN becomes any number, and its
        // product NaN by the scale.
        let limited = (x * steps).clamp(-127.0, 127.0);
        *to = (limited + WHOLE).to_bits() as i8;
    }
}

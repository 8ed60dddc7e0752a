//! Rounding to 4 bits.
//!
//! The scale of a row is a 120th of its largest magnitude. Each group takes the multiplier with the
//! least squared error, computed in f64 in a fixed order; of several with the same error, the first
//! of [`candidates`]. Rounding is to the nearest step, ties to even.

use std::ops::RangeInclusive;

use crate::{
    cpu::{
        int8::quantize::largest,
        isa::{Isa, Kernel},
        simd::Simd,
    },
    int4::{GROUP, Int4, MAX_MULTIPLIER, MAX_VALUE, STEPS},
    int8::Int8,
};

/// Number of sums of squared errors, each of every eighth element.
const LANES: usize = 8;

impl Int4 {
    /// Rounds each row of `row_len`. See [`quantize_row`].
    pub fn quantize(values: &[f32], row_len: usize) -> Self {
        let groups = row_len.div_ceil(GROUP);
        let rows = values.len() / row_len.max(1);
        let mut multiplied = Int8 { values: vec![0; values.len()], scales: vec![0.0; rows] };
        let mut multipliers = vec![1; rows * groups];
        let from = values.chunks_exact(row_len.max(1));
        let to = multiplied.values.chunks_exact_mut(row_len.max(1));
        let multipliers_of = multipliers.chunks_exact_mut(groups.max(1));
        for (((from, to), multipliers), scale) in
            from.zip(to).zip(multipliers_of).zip(&mut multiplied.scales)
        {
            *scale = quantize_row(from, to, multipliers);
        }
        Self { multiplied, multipliers }
    }
}

/// Rounds `row` to steps times multipliers. Returns the scale.
///
/// - `to [row]`: steps times multipliers
/// - `multipliers [row.len().div_ceil(GROUP)]`
///
/// All elements must be finite.
pub fn quantize_row(row: &[f32], to: &mut [i8], multipliers: &mut [i8]) -> f32 {
    Isa::best().run(QuantizeRow { row, to, multipliers })
}

/// Same for groups that have steps already, each with its own scale: steps stay, and a group's scale
/// is rounded to a whole multiplier of a fifteenth of the row's largest. A group whose multiplier
/// would be zero is rounded as in [`quantize_row`]. Returns the scale.
///
/// - `steps [row]`, from -8 to 7
/// - `scales [row.len().div_ceil(GROUP)]`, finite
pub fn round_scales(steps: &[i8], scales: &[f32], to: &mut [i8], multipliers: &mut [i8]) -> f32 {
    Isa::best().run(RoundScales { steps, scales, to, multipliers })
}

struct QuantizeRow<'a> {
    row: &'a [f32],
    to: &'a mut [i8],
    multipliers: &'a mut [i8],
}

impl Kernel for QuantizeRow<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> f32 {
        let largest = f64::from(largest(self.row));
        let limit = f64::from(MAX_VALUE);
        let per_unit = if largest > 0.0 { limit / largest } else { 0.0 };
        let groups = self.row.chunks(GROUP).zip(self.to.chunks_mut(GROUP));
        for ((row, to), multiplier) in groups.zip(self.multipliers) {
            let mut units = [0.0; GROUP];
            for (unit, x) in units.iter_mut().zip(row) {
                *unit = f64::from(*x) * per_unit;
            }
            *multiplier = round_group(&units, to);
        }
        (largest / limit) as f32
    }
}

struct RoundScales<'a> {
    steps: &'a [i8],
    scales: &'a [f32],
    to: &'a mut [i8],
    multipliers: &'a mut [i8],
}

impl Kernel for RoundScales<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> f32 {
        let largest = f64::from(largest(self.scales));
        let limit = f64::from(MAX_MULTIPLIER);
        let per_unit = if largest > 0.0 { limit / largest } else { 0.0 };
        let groups = self.steps.chunks(GROUP).zip(self.to.chunks_mut(GROUP));
        for (((steps, to), scale), multiplier) in groups.zip(self.scales).zip(self.multipliers) {
            let scale = f64::from(*scale) * per_unit;
            *multiplier = scale.round_ties_even() as i8;
            if *multiplier == 0 {
                let mut units = [0.0; GROUP];
                for (unit, step) in units.iter_mut().zip(steps) {
                    *unit = f64::from(*step) * scale;
                }
                *multiplier = round_group(&units, to);
                continue;
            }
            for (to, step) in to.iter_mut().zip(steps) {
                *to = step * *multiplier;
            }
        }
        (largest / limit) as f32
    }
}

/// Returns the magnitudes of multipliers to compare for a group whose largest magnitude is `largest`
/// units: around the smallest that reaches it. A smaller one cuts off the largest elements and is
/// finer for all others. Each is tried positive, then negative, since there is one more negative
/// step than positive ones.
fn candidates(largest: f64) -> RangeInclusive<i8> {
    /// Number of magnitudes to try below the one that reaches the largest element.
    const BELOW: i8 = 4;
    let reaching = (largest / -f64::from(STEPS[0])).ceil() as i8;
    let reaching = reaching.clamp(1, MAX_MULTIPLIER);
    (reaching - BELOW).max(1)..=(reaching + 1).min(MAX_MULTIPLIER)
}

/// Rounds a group, padded with zeros, to steps times the best multiplier, which it returns.
#[inline(always)]
fn round_group(units: &[f64; GROUP], to: &mut [i8]) -> i8 {
    let largest = units.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
    let candidates = candidates(largest);
    // The error of one candidate, which the best one does not exceed.
    let limit = squared_error(units, *candidates.end());
    let (mut best, mut least) = (1, f64::INFINITY);
    for magnitude in candidates {
        let cut_off = largest + f64::from(STEPS[0]) * f64::from(magnitude);
        if cut_off > 0.0 && cut_off * cut_off > limit {
            // The error of the largest element alone is larger.
            continue;
        }
        for multiplier in [magnitude, -magnitude] {
            let error = squared_error(units, multiplier);
            if error < least {
                (best, least) = (multiplier, error);
            }
        }
    }
    for (to, unit) in to.iter_mut().zip(units) {
        *to = step(*unit, 1.0 / f64::from(best)) as i8 * best;
    }
    best
}

#[inline(always)]
fn squared_error(units: &[f64; GROUP], multiplier: i8) -> f64 {
    let multiplier = f64::from(multiplier);
    let inverse = 1.0 / multiplier;
    let mut sums = [0.0; LANES];
    for units in units.as_chunks::<LANES>().0 {
        for (sum, unit) in sums.iter_mut().zip(units) {
            let error = unit - step(*unit, inverse) * multiplier;
            *sum += error * error;
        }
    }
    let [a, b, c, d, e, f, g, h] = sums;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

/// Returns the step nearest to `unit` times the `inverse` of a multiplier.
#[inline(always)]
fn step(unit: f64, inverse: f64) -> f64 {
    /// Added to a small number and subtracted again, leaves the nearest integer, ties to even.
    const WHOLE: f64 = 6_755_399_441_055_744.0;
    let [lowest, highest] = STEPS.map(f64::from);
    (unit * inverse + WHOLE - WHOLE).clamp(lowest, highest)
}

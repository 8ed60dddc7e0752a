//! Inputs in 8 bits: quantised token by token, and laid out for the products.

use super::super::{
    isa::{Isa, Kernel},
    pool::{Pieces, pool},
    simd::Simd,
};
use super::{
    group,
    tiles::{INPUTS, QUAD},
};

/// Rows that are multiplied together at most: their sums are held in registers.
pub const MAX_GROUP: usize = 16;

/// Inputs in 8 bits, `[rows, inputs]`.
///
/// Rows lie in groups. Four inputs of each row of a group lie together, then the next four of each: a product
/// takes them in this order. A group of one is a row as it is.
pub struct Rows {
    values: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
    /// Filled up to whole tiles with zeros.
    inputs: usize,
    group: usize,
}

/// By how much a product with a weight is too large, in inputs: weights are kept 128 above their values.
pub(super) const OFFSET: i32 = 128;

/// Some rows that are multiplied together.
#[derive(Clone, Copy)]
pub(crate) struct Group<'a> {
    /// `[inputs / QUAD, rows, QUAD]`
    pub(crate) values: &'a [i8],
    /// `[rows]`: the sum of each.
    pub(crate) sums: &'a [i32],
}

impl Group<'_> {
    /// How many rows.
    pub(crate) fn rows(self) -> usize {
        self.sums.len()
    }
}

impl Rows {
    /// Quantises `x [rows, inputs]`: each row to 127 steps up and down from zero to its largest element.
    ///
    /// A row with an element that is not finite gets a scale that is not: all its products are NaN, and
    /// those of no other row.
    pub fn quantize(isa: Isa, x: &[f32], inputs: usize) -> Self {
        let rows = x.len() / inputs.max(1);
        Self::quantize_in(isa, x, inputs, group(isa, rows))
    }

    /// The same in groups of `per` rows.
    pub(super) fn quantize_in(isa: Isa, x: &[f32], inputs: usize, per: usize) -> Self {
        let rows = x.len() / inputs.max(1);
        let padded = inputs.next_multiple_of(INPUTS);
        let mut quantized = Self {
            values: vec![0; rows * padded],
            scales: vec![0.0; rows],
            sums: vec![0; rows],
            inputs: padded,
            group: per,
        };
        let values = Pieces::new(&mut quantized.values, padded * per);
        let scales = Pieces::new(&mut quantized.scales, per);
        let sums = Pieces::new(&mut quantized.sums, per);
        let work = |number: usize| {
            // SAFETY: each number is given to one thread, once.
            let (values, scales, sums) =
                unsafe { (values.piece(number), scales.piece(number), sums.piece(number)) };
            let first = number * per;
            let x = &x[first * inputs..(first + scales.len()) * inputs];
            isa.run(Quantize { x, inputs, values, scales, sums });
        };
        if rows * inputs < super::super::WORTH_SHARING {
            (0..values.len()).for_each(work);
        } else {
            pool().run(values.len(), work);
        }
        quantized
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.scales.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.scales.is_empty()
    }

    /// Inputs, filled up to whole tiles.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Rows in a group; the last may have fewer.
    pub fn group(&self) -> usize {
        self.group
    }

    /// By what a row's sums are multiplied.
    pub(crate) fn scale(&self, row: usize) -> f32 {
        self.scales[row]
    }

    /// The groups of `rows`, which begin and end with one.
    pub(crate) fn groups(
        &self,
        rows: std::ops::Range<usize>,
    ) -> impl ExactSizeIterator<Item = Group<'_>> + Clone {
        debug_assert!(rows.start.is_multiple_of(self.group));
        let values = &self.values[rows.start * self.inputs..rows.end * self.inputs];
        let groups = values.chunks(self.group * self.inputs);
        let sums = self.sums[rows].chunks(self.group);
        groups.zip(sums).map(|(values, sums)| Group { values, sums })
    }

    /// `rows` as one group, where each is a group of its own: `[rows, inputs]`.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn plain(&self, rows: std::ops::Range<usize>) -> Group<'_> {
        debug_assert_eq!(self.group, 1);
        let values = &self.values[rows.start * self.inputs..rows.end * self.inputs];
        Group { values, sums: &self.sums[rows] }
    }
}

/// One group.
struct Quantize<'a> {
    x: &'a [f32],
    inputs: usize,
    values: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let rows = self.scales.len();
        let mut plain = vec![0i8; if rows == 1 { 0 } else { self.inputs }];
        for (row, x) in self.x.chunks_exact(self.inputs).enumerate() {
            let largest = largest(x);
            self.scales[row] = largest / 127.0;
            if rows == 1 {
                let values = &mut self.values[..self.inputs];
                round(x, largest, values);
                self.sums[row] = sum(values);
                continue;
            }
            round(x, largest, &mut plain);
            self.sums[row] = sum(&plain);
            let (quads, rest) = plain.as_chunks::<QUAD>();
            let places = self.values.as_chunks_mut::<QUAD>().0;
            for (quad, to) in quads.iter().zip(places[row..].iter_mut().step_by(rows)) {
                *to = *quad;
            }
            if !rest.is_empty() {
                places[quads.len() * rows + row][..rest.len()].copy_from_slice(rest);
            }
        }
    }
}

/// The largest magnitude; NaN if there is one.
///
/// Magnitudes are compared as integers, which orders them, puts infinity above and NaN on top, and which the
/// compiler turns into wide instructions.
#[inline(always)]
pub(super) fn largest(x: &[f32]) -> f32 {
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

/// Rounds to 127 steps up and down from zero to `largest`.
#[inline(always)]
pub(super) fn round(x: &[f32], largest: f32, to: &mut [i8]) {
    /// Added to a small number, leaves the nearest whole one in the lowest bits, the even one of two.
    const WHOLE: f32 = 12_582_912.0;
    let steps = 127.0 / largest;
    for (to, x) in to.iter_mut().zip(x) {
        // Out of range is what a `largest` near zero makes. NaN becomes any number, and stays NaN by its scale.
        let limited = (x * steps).clamp(-127.0, 127.0);
        *to = (limited + WHOLE).to_bits() as i8;
    }
}

#[inline(always)]
fn sum(values: &[i8]) -> i32 {
    values.iter().map(|value| i32::from(*value)).sum()
}

//! Inputs in 8 bits: quantised token by token, in the layout of the products.

use super::super::{
    int4::GROUP,
    isa::{Isa, Kernel},
    pool::{Chunks, pool},
    simd::Simd,
};
use super::{
    group,
    quantize::{largest, round},
    tiles::{INPUTS, OUTPUTS, QUAD},
};

/// Maximum number of rows in a group. Their sums must fit into registers.
pub const MAX_GROUP: usize = 16;

/// Inputs in 8 bits, `[rows, inputs]`.
///
/// Rows are interleaved in groups: four inputs of each row of a group are followed by the next four
/// of each. Products read them in this order. A group of one row is not interleaved.
pub struct Rows {
    values: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
    /// Sum of each `GROUP` inputs, interleaved like values.
    partial_sums: Vec<i32>,
    /// Number of inputs, padded with zeros to whole tiles.
    inputs: usize,
    group: usize,
}

/// Excess of a product, in units of the input: weights are stored with 128 added.
pub(super) const OFFSET: i32 = 128;

/// Rows that are multiplied together.
#[derive(Clone, Copy)]
pub(crate) struct Group<'a> {
    /// `[inputs / QUAD, rows, QUAD]`
    pub(crate) values: &'a [i8],
    /// `[rows]`: the sum of each row.
    pub(crate) sums: &'a [i32],
    /// `[inputs / GROUP, rows]`: the sum of each group of inputs, for weights in 4 bits.
    pub(crate) partial_sums: &'a [i32],
}

impl Group<'_> {
    /// Number of rows.
    pub(crate) fn rows(self) -> usize {
        self.sums.len()
    }
}

impl Rows {
    /// Quantises `x [rows, inputs]`: each row to 127 steps on both sides of zero, up to its largest
    /// magnitude.
    ///
    /// If a row has an element that is not finite, so is its scale: all its products become NaN,
    /// and other rows are not affected.
    pub fn quantize(isa: Isa, x: &[f32], inputs: usize) -> Self {
        let rows = x.len() / inputs.max(1);
        Self::quantize_in(isa, x, inputs, group(isa, rows))
    }

    /// Same as [`Self::quantize`], in groups of `per` rows.
    pub(super) fn quantize_in(isa: Isa, x: &[f32], inputs: usize, per: usize) -> Self {
        let rows = x.len() / inputs.max(1);
        let padded = inputs.next_multiple_of(INPUTS);
        let mut quantized = Self {
            values: vec![0; rows * padded],
            scales: vec![0.0; rows],
            sums: vec![0; rows],
            partial_sums: vec![0; rows * padded / GROUP],
            inputs: padded,
            group: per,
        };
        let values = Chunks::new(&mut quantized.values, padded * per);
        let scales = Chunks::new(&mut quantized.scales, per);
        let sums = Chunks::new(&mut quantized.sums, per);
        let partial_sums = Chunks::new(&mut quantized.partial_sums, padded / GROUP * per);
        let work = |index: usize| {
            // SAFETY: each index is passed to one thread, once.
            let (values, scales) = unsafe { (values.chunk(index), scales.chunk(index)) };
            // SAFETY: as above.
            let (sums, partial_sums) = unsafe { (sums.chunk(index), partial_sums.chunk(index)) };
            let first = index * per;
            let x = &x[first * inputs..(first + scales.len()) * inputs];
            isa.run(Quantize { x, inputs, values, scales, sums, partial_sums });
        };
        if rows * inputs < super::super::PARALLEL_THRESHOLD {
            (0..values.len()).for_each(work);
        } else {
            pool().run(values.len(), work);
        }
        quantized
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.scales.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.scales.is_empty()
    }

    /// Number of inputs, padded to whole tiles.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of rows in a group; the last group may have fewer.
    pub fn group(&self) -> usize {
        self.group
    }

    /// Returns the scale of a row's sums.
    pub(crate) fn scale(&self, row: usize) -> f32 {
        self.scales[row]
    }

    /// Returns the groups of `rows`, which begins and ends at a group boundary.
    pub(crate) fn groups(
        &self,
        rows: std::ops::Range<usize>,
    ) -> impl ExactSizeIterator<Item = Group<'_>> + Clone {
        debug_assert!(rows.start.is_multiple_of(self.group));
        let values = &self.values[rows.start * self.inputs..rows.end * self.inputs];
        let groups = values.chunks(self.group * self.inputs);
        let partial = self.inputs / GROUP;
        let partial_sums = &self.partial_sums[rows.start * partial..rows.end * partial];
        let partial_sums = partial_sums.chunks(self.group * partial);
        let sums = self.sums[rows].chunks(self.group).zip(partial_sums);
        groups.zip(sums).map(|(values, (sums, partial_sums))| Group { values, sums, partial_sums })
    }

    /// Calls `each` with every group of `rows` and every strip of `strips`, with the start of their
    /// sums in `out [rows, width]`, and with the width.
    pub(in crate::cpu) fn for_each_strip(
        &self,
        rows: std::ops::Range<usize>,
        strips: std::ops::Range<usize>,
        out: &mut [i32],
        mut each: impl FnMut(Group, usize, &mut [i32], usize),
    ) {
        let width = strips.len() * OUTPUTS;
        for (index, strip) in strips.enumerate() {
            let mut row = 0;
            for group in self.groups(rows.clone()) {
                each(group, strip, &mut out[row * width + index * OUTPUTS..], width);
                row += group.rows();
            }
        }
    }

    /// Returns `rows` as one group, where each row is a group of its own: `[rows, inputs]`.
    #[cfg(target_arch = "x86_64")]
    pub(in crate::cpu) fn plain(&self, rows: std::ops::Range<usize>) -> Group<'_> {
        debug_assert_eq!(self.group, 1);
        let values = &self.values[rows.start * self.inputs..rows.end * self.inputs];
        let partial = self.inputs / GROUP;
        let partial_sums = &self.partial_sums[rows.start * partial..rows.end * partial];
        Group { values, sums: &self.sums[rows], partial_sums }
    }
}

/// Quantises one group.
struct Quantize<'a> {
    x: &'a [f32],
    inputs: usize,
    values: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
    partial_sums: &'a mut [i32],
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
                self.sums[row] = sums(values, self.partial_sums.iter_mut());
                continue;
            }
            round(x, largest, &mut plain);
            let partial_sums = self.partial_sums[row..].iter_mut().step_by(rows);
            self.sums[row] = sums(&plain, partial_sums);
            let (quads, rest) = plain.as_chunks::<QUAD>();
            let slots = self.values.as_chunks_mut::<QUAD>().0;
            for (quad, to) in quads.iter().zip(slots[row..].iter_mut().step_by(rows)) {
                *to = *quad;
            }
            if !rest.is_empty() {
                slots[quads.len() * rows + row][..rest.len()].copy_from_slice(rest);
            }
        }
    }
}

/// Writes the sum of each group of inputs, and returns their sum.
#[inline(always)]
fn sums<'a>(values: &[i8], partial_sums: impl Iterator<Item = &'a mut i32>) -> i32 {
    let mut total = 0;
    for (group, to) in values.chunks(GROUP).zip(partial_sums) {
        *to = group.iter().map(|value| i32::from(*value)).sum();
        total += *to;
    }
    total
}

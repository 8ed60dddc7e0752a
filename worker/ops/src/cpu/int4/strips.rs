//! Memory layout of weights in 4 bits: strips of sixteen outputs, in the order in which a step reads
//! them.
//!
//! A strip has the multipliers of all groups first, sixteen bytes for each, padded to a whole line.
//! Four lines of 64 bytes for each group follow. A line has eight adjacent inputs of all sixteen
//! outputs, four bytes an output: the low halves of the bytes are the first four inputs, the high
//! halves the next four. So both halves of a line are lines of [`super::super::int8::tiles`] once
//! they are multiplied. A step is stored with 8 added. A matrix that is not whole strips, or whose
//! inputs are not whole tiles, is padded with weights of zero.

use std::ops::Range;

use super::{GROUP, OFFSET};
use crate::{
    cpu::{
        int8::{
            OUTPUTS,
            tiles::{self, INPUTS, QUAD},
        },
        isa::{Isa, Kernel},
        pool::{Chunks, pool},
        simd::Simd,
    },
    memory::{self, LINE, Line},
};

/// Number of lines of a group.
pub(super) const GROUP_LINES: usize = GROUP * OUTPUTS / 2 / LINE;
/// Number of inputs of a line.
const LINE_INPUTS: usize = 2 * QUAD;

/// Size in bytes of a packed matrix of `outputs` by `inputs`.
pub fn packed_bytes(outputs: usize, inputs: usize) -> usize {
    outputs.div_ceil(OUTPUTS) * strip_bytes(inputs)
}

/// Size in bytes of a strip of `inputs`.
pub fn strip_bytes(inputs: usize) -> usize {
    let groups = inputs.next_multiple_of(INPUTS) / GROUP;
    multiplier_bytes(groups) + groups * GROUP_LINES * LINE
}

/// Size in bytes of the multipliers of a strip.
fn multiplier_bytes(groups: usize) -> usize {
    (groups * OUTPUTS).next_multiple_of(LINE)
}

/// Packs a matrix into strips. See [`super::Int4`].
///
/// - `values [n, inputs]`: steps times multipliers
/// - `multipliers [n, inputs.div_ceil(GROUP)]`
pub fn pack(values: &[i8], multipliers: &[i8], inputs: usize) -> Vec<Line> {
    let outputs = values.len() / inputs.max(1);
    let mut lines = memory::lines(packed_bytes(outputs, inputs) / LINE);
    if lines.is_empty() {
        return lines;
    }
    let groups = inputs.div_ceil(GROUP);
    let strips = Chunks::new(&mut lines, strip_bytes(inputs) / LINE);
    pool().run(strips.len(), |index| {
        // SAFETY: the pool passes each index to one thread, once.
        let strip = unsafe { strips.chunk(index) };
        let rows = index * OUTPUTS..((index + 1) * OUTPUTS).min(outputs);
        let values = &values[rows.start * inputs..rows.end * inputs];
        pack_strip(values, &multipliers[rows.start * groups..rows.end * groups], inputs, strip);
    });
    lines
}

/// Packs up to sixteen rows into a strip.
fn pack_strip(values: &[i8], multipliers: &[i8], inputs: usize, strip: &mut [Line]) {
    let groups = inputs.next_multiple_of(INPUTS) / GROUP;
    let (to, lines) = strip.split_at_mut(multiplier_bytes(groups) / LINE);
    let to: &mut [i8] = bytemuck::cast_slice_mut(to);
    to.fill(1);
    lines.fill(Line([OFFSET << 4 | OFFSET; LINE]));
    let rows = values.chunks_exact(inputs).zip(multipliers.chunks_exact(inputs.div_ceil(GROUP)));
    for (output, (values, multipliers)) in rows.enumerate() {
        for (group, (values, multiplier)) in values.chunks(GROUP).zip(multipliers).enumerate() {
            to[group * OUTPUTS + output] = *multiplier;
            for (input, value) in values.iter().enumerate() {
                let line = &mut lines[group * GROUP_LINES + input / LINE_INPUTS].0;
                let byte = &mut line[output * QUAD + input % QUAD];
                let step = (value / multiplier + OFFSET as i8) as u8;
                *byte = match input / QUAD % 2 {
                    0 => *byte & 0xF0 | step,
                    _ => *byte & 0x0F | step << 4,
                };
            }
        }
    }
}

/// A matrix in strips.
#[derive(Clone, Copy)]
pub struct Strips<'a> {
    bytes: &'a [u8],
    /// Number of inputs, padded to whole tiles.
    inputs: usize,
}

/// Sixteen outputs of a matrix.
#[derive(Clone, Copy)]
pub struct Strip<'a> {
    /// The multiplier of each output, for each group.
    pub(super) multipliers: &'a [[u8; OUTPUTS]],
    /// Steps: `GROUP_LINES` lines for each group.
    pub(super) lines: &'a [[u8; LINE]],
}

impl<'a> Strips<'a> {
    /// Creates the strips of a matrix of `inputs` from the output of [`pack`], which is aligned to
    /// cache lines.
    pub fn new(bytes: &'a [u8], inputs: usize) -> Self {
        assert!(bytes.as_ptr().cast::<Line>().is_aligned(), "strips are aligned to cache lines");
        assert_eq!(bytes.len() % strip_bytes(inputs).max(1), 0, "strips are whole");
        Self { bytes, inputs: inputs.next_multiple_of(INPUTS) }
    }

    /// Number of inputs, padded to whole tiles.
    pub fn inputs(self) -> usize {
        self.inputs
    }

    /// Number of strips of sixteen outputs.
    pub fn count(self) -> usize {
        self.bytes.len() / strip_bytes(self.inputs).max(1)
    }

    /// Returns the memory of strip `number`.
    pub(super) fn strip_bytes(self, number: usize) -> &'a [u8] {
        let size = strip_bytes(self.inputs);
        &self.bytes[number * size..(number + 1) * size]
    }

    /// Returns strip `number`.
    pub fn strip(self, number: usize) -> Strip<'a> {
        let groups = self.inputs / GROUP;
        let (multipliers, lines) = self.strip_bytes(number).split_at(multiplier_bytes(groups));
        let multipliers = &multipliers.as_chunks().0[..groups];
        Strip { multipliers, lines: lines.as_chunks().0 }
    }

    /// Copies the weights of output `number` into `row`: steps times multipliers.
    pub fn read_row(self, number: usize, row: &mut [i8]) {
        let (strip, output) = (self.strip(number / OUTPUTS), number % OUTPUTS);
        for (input, to) in row.iter_mut().enumerate() {
            let byte = strip.lines[input / LINE_INPUTS][output * QUAD + input % QUAD];
            let step = (byte >> (input / QUAD % 2 * 4) & 0x0F) as i8 - OFFSET as i8;
            *to = step * strip.multipliers[input / GROUP][output] as i8;
        }
    }

    /// Unpacks `strips` into tiles of weights in 8 bits: steps times multipliers.
    pub fn unpack(self, isa: Isa, strips: Range<usize>) -> Vec<Line> {
        // Not `memory::lines`: its advice to the system would be a call for every product.
        let lines = tiles::packed_bytes(strips.len() * OUTPUTS, self.inputs) / LINE;
        let mut tiles = vec![Line([0; LINE]); lines];
        let each = tiles.len() / strips.len().max(1);
        for (strip, tiles) in strips.zip(tiles.chunks_exact_mut(each.max(1))) {
            isa.run(Unpack { strip: self.strip(strip), tiles });
        }
        tiles
    }
}

/// Unpacks a strip into its tiles.
struct Unpack<'a> {
    strip: Strip<'a>,
    tiles: &'a mut [Line],
}

impl Kernel for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let groups = self.strip.lines.as_chunks::<GROUP_LINES>().0.iter();
        let to = self.tiles.as_chunks_mut::<{ 2 * GROUP_LINES }>().0;
        for ((lines, multipliers), to) in groups.zip(self.strip.multipliers).zip(to) {
            let factors: [u8; LINE] = std::array::from_fn(|byte| multipliers[byte / QUAD]);
            for (line, to) in lines.iter().zip(to.as_chunks_mut::<2>().0) {
                for byte in 0..LINE {
                    let value = |step: u8| {
                        step.wrapping_sub(OFFSET)
                            .wrapping_mul(factors[byte])
                            .wrapping_add(tiles::OFFSET)
                    };
                    to[0].0[byte] = value(line[byte] & 0x0F);
                    to[1].0[byte] = value(line[byte] >> 4);
                }
            }
        }
    }
}

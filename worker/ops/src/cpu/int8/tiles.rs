//! Memory layout of weights in 8 bits: tiles, in the order in which a step reads them.
//!
//! A tile is 16 outputs by 64 inputs, 1 KiB: sixteen lines of 64 bytes, each with four adjacent
//! inputs of all sixteen outputs. A line fills an AVX-512 register, half a line an AVX2 register, a
//! tile an AMX register. The tiles of sixteen outputs (a strip) are contiguous and followed by
//! those of the next sixteen, so that a thread reads memory sequentially. A matrix that is not
//! whole tiles is padded with weights of zero.
//!
//! A weight is stored with 128 added: instructions multiply an unsigned byte with a signed one, and
//! inputs take the sign. The resulting sums are too large by 128 times the sum of the inputs.

use crate::{
    cpu::pool::{Chunks, pool},
    memory::{self, LINE, Line},
};

/// Number of outputs of a tile.
pub const OUTPUTS: usize = 16;
/// Number of inputs of a tile.
pub const INPUTS: usize = 64;
/// Number of adjacent inputs of an output.
pub const QUAD: usize = 4;
/// Size of a tile in bytes.
pub const TILE: usize = OUTPUTS * INPUTS;
/// Maximum number of inputs. With more, a sum of 32 bits could overflow: 255 * 127 * inputs.
pub const MAX_INPUTS: usize = i32::MAX as usize / (255 * 127);

/// Value that is added to a weight.
pub(in crate::cpu) const OFFSET: u8 = 128;

/// Size in bytes of a packed matrix of `outputs` by `inputs`.
pub fn packed_bytes(outputs: usize, inputs: usize) -> usize {
    outputs.div_ceil(OUTPUTS) * inputs.div_ceil(INPUTS) * TILE
}

/// Packs `values [n, inputs]` into tiles.
pub fn pack(values: &[i8], inputs: usize) -> Vec<Line> {
    let strip = strip_bytes(inputs);
    let outputs = values.len() / inputs.max(1);
    let mut tiles = memory::lines(packed_bytes(outputs, inputs) / LINE);
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut tiles);
    if strip == 0 {
        return tiles;
    }
    let strips = Chunks::new(bytes, strip);
    pool().run(strips.len(), |index| {
        // SAFETY: the pool passes each index to one thread, once.
        let strip = unsafe { strips.chunk(index) };
        let first = index * OUTPUTS;
        let rows = &values[first * inputs..(first + OUTPUTS).min(outputs) * inputs];
        pack_strip(rows, inputs, strip);
    });
    tiles
}

/// Packs up to sixteen rows into the tiles of a strip.
fn pack_strip(rows: &[i8], inputs: usize, strip: &mut [u8]) {
    strip.fill(OFFSET);
    for (output, row) in rows.chunks_exact(inputs).enumerate() {
        let lines = strip.as_chunks_mut::<LINE>().0;
        for (line, quad) in lines.iter_mut().zip(row.chunks(QUAD)) {
            let slot = &mut line[output * QUAD..(output + 1) * QUAD];
            for (to, from) in slot.iter_mut().zip(quad) {
                *to = (*from as u8).wrapping_add(OFFSET);
            }
        }
    }
}

fn strip_bytes(inputs: usize) -> usize {
    inputs.div_ceil(INPUTS) * TILE
}

/// A matrix in tiles.
#[derive(Clone, Copy)]
pub struct Tiles<'a> {
    bytes: &'a [u8],
    /// Number of inputs, padded to whole tiles.
    inputs: usize,
}

impl<'a> Tiles<'a> {
    /// Creates the tiles of a matrix of `inputs` from the output of [`pack`], which is aligned to
    /// cache lines.
    pub fn new(bytes: &'a [u8], inputs: usize) -> Self {
        assert!(bytes.as_ptr().cast::<Line>().is_aligned(), "tiles are aligned to cache lines");
        assert_eq!(bytes.len() % strip_bytes(inputs).max(1), 0, "tiles are whole strips");
        Self { bytes, inputs: inputs.next_multiple_of(INPUTS) }
    }

    /// Number of inputs, padded to whole tiles.
    pub fn inputs(self) -> usize {
        self.inputs
    }

    /// Number of strips of sixteen outputs.
    pub fn strips(self) -> usize {
        self.bytes.len() / (self.inputs * OUTPUTS).max(1)
    }

    /// Returns the bytes of strip `number`: lines of four inputs each.
    pub fn strip(self, number: usize) -> &'a [u8] {
        let size = self.inputs * OUTPUTS;
        &self.bytes[number * size..(number + 1) * size]
    }

    /// Copies the weights of output `number` into `row`, without the added 128.
    pub fn read_row(self, number: usize, row: &mut [i8]) {
        let (lines, _) = self.strip(number / OUTPUTS).as_chunks::<LINE>();
        let start = number % OUTPUTS * QUAD;
        for (line, quad) in lines.iter().zip(row.chunks_mut(QUAD)) {
            for (to, from) in quad.iter_mut().zip(&line[start..]) {
                *to = from.wrapping_sub(OFFSET) as i8;
            }
        }
    }
}

//! Quantised blocks: where each type stores the bits of its elements, and one decoder for all
//! types.
//!
//! An element is `scale * (quant - zero) + offset`. Types differ in where the bits of a quant are
//! and in what the scales consist of; both are data here. All products fit into the 24 bits of a
//! float, so only the sum rounds, and every decoder that computes in f32 returns the same bits.

use half::f16;

/// Elements of the largest block.
const MAX_LEN: usize = 256;
/// Neutral offset: unlike zero, adding it leaves every float unchanged, -0.0 too.
const NOTHING: f32 = -0.0;

/// Layout of a block. All positions are in bytes from its start.
#[derive(Debug)]
pub(super) struct BlockLayout {
    /// Number of elements.
    pub(super) len: usize,
    /// Size in bytes.
    pub(super) bytes: usize,
    /// Position of the block's half-precision scale.
    scale: usize,
    /// Groups of elements with their own scales and offsets.
    groups: Groups,
    /// Planes of bits that together make up a quant of one unsigned byte.
    planes: &'static [Plane],
    /// Mask of bits to flip: the sign bit of signed quants, so that they count from -128.
    flip: u8,
    /// Subtracted from each quant.
    zero: i16,
}

/// Groups of elements that share a scale, and the source of their scale and offset.
#[derive(Debug, Clone, Copy)]
enum Groups {
    /// One group under the block's scale.
    Whole,
    /// One group under the block's scale, above the half-precision minimum at `min`.
    WholeAbove { min: usize },
    /// Runs of 32. Six bits per run at `factors` multiply the block's scale. Six more multiply the
    /// half-precision depth at `min`, by which the run lies below zero.
    SixBits { min: usize, factors: usize },
    /// Runs of 16. A signed byte per run at `factors` multiplies the block's scale.
    Bytes { factors: usize },
}

/// Some of the bits of every quant.
///
/// Bytes are taken in runs of `run`. The lowest `width` bits of a run's bytes belong to the first
/// `run` elements, the next bits to the next `run` elements. When all bits are used, the next bytes
/// follow.
#[derive(Debug)]
struct Plane {
    at: usize,
    /// Number of bits of one quant: 1, 2, 4 or 8.
    width: usize,
    run: usize,
    /// Left shift of the bits in the quant.
    shift: usize,
}

const fn plane(at: usize, width: usize, run: usize, shift: usize) -> Plane {
    Plane { at, width, run, shift }
}

pub(super) static Q4_0: BlockLayout = BlockLayout {
    len: 32,
    bytes: 18,
    scale: 0,
    groups: Groups::Whole,
    planes: &[plane(2, 4, 16, 0)],
    flip: 0,
    zero: 8,
};

pub(super) static Q4_1: BlockLayout = BlockLayout {
    len: 32,
    bytes: 20,
    scale: 0,
    groups: Groups::WholeAbove { min: 2 },
    planes: &[plane(4, 4, 16, 0)],
    flip: 0,
    zero: 0,
};

pub(super) static Q5_0: BlockLayout = BlockLayout {
    len: 32,
    bytes: 22,
    scale: 0,
    groups: Groups::Whole,
    planes: &[plane(6, 4, 16, 0), plane(2, 1, 1, 4)],
    flip: 0,
    zero: 16,
};

pub(super) static Q5_1: BlockLayout = BlockLayout {
    len: 32,
    bytes: 24,
    scale: 0,
    groups: Groups::WholeAbove { min: 2 },
    planes: &[plane(8, 4, 16, 0), plane(4, 1, 1, 4)],
    flip: 0,
    zero: 0,
};

pub(super) static Q8_0: BlockLayout = BlockLayout {
    len: 32,
    bytes: 34,
    scale: 0,
    groups: Groups::Whole,
    planes: &[plane(2, 8, 32, 0)],
    flip: 0x80,
    zero: 128,
};

pub(super) static Q4_K: BlockLayout = BlockLayout {
    len: 256,
    bytes: 144,
    scale: 0,
    groups: Groups::SixBits { min: 2, factors: 4 },
    planes: &[plane(16, 4, 32, 0)],
    flip: 0,
    zero: 0,
};

pub(super) static Q5_K: BlockLayout = BlockLayout {
    len: 256,
    bytes: 176,
    scale: 0,
    groups: Groups::SixBits { min: 2, factors: 4 },
    planes: &[plane(48, 4, 32, 0), plane(16, 1, 32, 4)],
    flip: 0,
    zero: 0,
};

pub(super) static Q6_K: BlockLayout = BlockLayout {
    len: 256,
    bytes: 210,
    scale: 208,
    groups: Groups::Bytes { factors: 192 },
    planes: &[plane(0, 4, 64, 0), plane(128, 2, 32, 4)],
    flip: 0,
    zero: 32,
};

impl BlockLayout {
    /// Decodes whole blocks.
    ///
    /// - blocks: concatenated blocks
    /// - out: [`Self::len`] elements for each
    pub(super) fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        let mut quants = [0; MAX_LEN];
        let quants = &mut quants[..self.len];
        let group = self.group_len();
        for (block, out) in blocks.chunks_exact(self.bytes).zip(out.chunks_exact_mut(self.len)) {
            self.unpack(block, quants);
            let groups = quants.chunks_exact(group).zip(out.chunks_exact_mut(group));
            for (index, (quants, out)) in groups.enumerate() {
                let (scale, offset) = self.scale_and_offset(block, index);
                for (quant, out) in quants.iter().zip(out) {
                    *out = scale * f32::from(i16::from(*quant) - self.zero) + offset;
                }
            }
        }
    }

    /// Number of elements that share a scale.
    const fn group_len(&self) -> usize {
        match self.groups {
            Groups::Whole | Groups::WholeAbove { .. } => self.len,
            Groups::SixBits { .. } => 32,
            Groups::Bytes { .. } => 16,
        }
    }

    /// Gathers the bits of every quant.
    fn unpack(&self, block: &[u8], quants: &mut [u8]) {
        quants.fill(self.flip);
        for plane in self.planes {
            let per_byte = 8 / plane.width;
            let mask = 0xFF >> (8 - plane.width);
            let bytes = block[plane.at..].chunks_exact(plane.run);
            for (bytes, quants) in bytes.zip(quants.chunks_exact_mut(plane.run * per_byte)) {
                for (part, quants) in quants.chunks_exact_mut(plane.run).enumerate() {
                    for (quant, byte) in quants.iter_mut().zip(bytes) {
                        *quant ^= (byte >> (part * plane.width) & mask) << plane.shift;
                    }
                }
            }
        }
    }

    /// Returns the scale and the offset of group `index`.
    fn scale_and_offset(&self, block: &[u8], index: usize) -> (f32, f32) {
        let scale = half_at(block, self.scale);
        match self.groups {
            Groups::Whole => (scale, NOTHING),
            Groups::WholeAbove { min } => (scale, half_at(block, min)),
            Groups::SixBits { min, factors } => {
                let (factor, depth) = six_bits(&block[factors..factors + 12], index);
                (scale * f32::from(factor), -(half_at(block, min) * f32::from(depth)))
            }
            Groups::Bytes { factors } => {
                (scale * f32::from(block[factors + index].cast_signed()), NOTHING)
            }
        }
    }
}

/// Returns the steps of a row of `Q4_0`, from -8 to 7, and the scale of each block.
pub(super) fn q4_0_steps(row: &[u8]) -> (Vec<i8>, Vec<f32>) {
    let (mut steps, mut scales) = (Vec::new(), Vec::new());
    let mut quants = vec![0; Q4_0.len];
    for block in row.chunks_exact(Q4_0.bytes) {
        Q4_0.unpack(block, &mut quants);
        steps.extend(quants.iter().map(|quant| *quant as i8 - Q4_0.zero as i8));
        scales.push(half_at(block, Q4_0.scale));
    }
    (steps, scales)
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Returns the scale and the depth of a run, from twelve bytes with eight of each.
///
/// The first four of either have a byte each. The others consist of the upper bits of these bytes
/// and the nibbles of the last four bytes.
fn six_bits(packed: &[u8], run: usize) -> (u8, u8) {
    match run.checked_sub(4) {
        None => (packed[run] & 63, packed[run + 4] & 63),
        Some(late) => {
            let low = packed[late + 8];
            (low & 15 | packed[late] >> 6 << 4, low >> 4 | packed[late + 4] >> 6 << 4)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static ALL: [&BlockLayout; 8] = [&Q4_0, &Q4_1, &Q5_0, &Q5_1, &Q8_0, &Q4_K, &Q5_K, &Q6_K];

    /// Positions and lengths of all fields of a block.
    fn fields(layout: &BlockLayout) -> Vec<(usize, usize)> {
        let mut fields = vec![(layout.scale, 2)];
        match layout.groups {
            Groups::Whole => {}
            Groups::WholeAbove { min } => fields.push((min, 2)),
            Groups::SixBits { min, factors } => fields.extend([(min, 2), (factors, 12)]),
            Groups::Bytes { factors } => fields.push((factors, layout.len / 16)),
        }
        fields.extend(layout.planes.iter().map(|plane| (plane.at, layout.len * plane.width / 8)));
        fields.sort_unstable();
        fields
    }

    #[test]
    fn fields_cover_a_block_without_gaps() {
        for layout in ALL {
            let mut end = 0;
            for (at, len) in fields(layout) {
                assert_eq!(at, end, "{layout:?}");
                end += len;
            }
            assert_eq!(end, layout.bytes, "{layout:?}");
            assert!(layout.len <= MAX_LEN && layout.len.is_multiple_of(layout.group_len()));
        }
    }

    #[test]
    fn every_bit_of_a_block_changes_one_element() {
        for layout in ALL {
            let planes = layout.planes.iter().flat_map(|p| p.at..p.at + layout.len * p.width / 8);
            let mut unchanged = vec![0; layout.len];
            layout.unpack(&vec![0; layout.bytes], &mut unchanged);
            for (byte, bit) in planes.flat_map(|byte| (0..8).map(move |bit| (byte, bit))) {
                let mut block = vec![0; layout.bytes];
                block[byte] = 1 << bit;
                let mut quants = vec![0; layout.len];
                layout.unpack(&block, &mut quants);
                let changed = quants.iter().zip(&unchanged).filter(|(a, b)| a != b).count();
                assert_eq!(changed, 1, "bit {bit} of byte {byte} of {layout:?}");
            }
        }
    }
}

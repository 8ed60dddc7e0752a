//! Products in 4 bits on any CPU, as a plain definition.

use super::{
    OFFSET,
    strips::{GROUP_LINES, Strip},
};
use crate::cpu::int8::{OUTPUTS, rows::Group, tiles::QUAD};

/// See [`super::strip_products`].
pub(super) fn products(x: Group, strip: Strip, out: &mut [i32], width: usize) {
    let quads = x.values.as_chunks::<QUAD>().0;
    for row in 0..x.rows() {
        let mut totals = [0; OUTPUTS];
        let mut quads = quads[row..].iter().step_by(x.rows());
        let partial_sums = x.partial_sums[row..].iter().step_by(x.rows());
        let groups = strip.lines.chunks_exact(GROUP_LINES).zip(strip.multipliers);
        for ((lines, multipliers), partial_sum) in groups.zip(partial_sums) {
            let mut sums = [-i32::from(OFFSET) * partial_sum; OUTPUTS];
            for (line, shift) in lines.iter().flat_map(|line| [(line, 0), (line, 4)]) {
                let Some(quad) = quads.next() else { break };
                for (sum, bytes) in sums.iter_mut().zip(line.as_chunks::<QUAD>().0) {
                    for (byte, x) in bytes.iter().zip(quad) {
                        *sum += i32::from(byte >> shift & 0x0F) * i32::from(*x);
                    }
                }
            }
            for ((total, sum), multiplier) in totals.iter_mut().zip(sums).zip(multipliers) {
                *total += sum * i32::from(*multiplier as i8);
            }
        }
        out[row * width..row * width + OUTPUTS].copy_from_slice(&totals);
    }
}

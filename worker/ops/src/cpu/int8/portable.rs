//! Products in 8 bits on any CPU: what they are, spelled out.

use std::ops::Range;

use super::{
    OUTPUTS, Tiles,
    rows::{Group, OFFSET},
    tiles::QUAD,
};
use crate::cpu::memory::LINE;

/// See [`super::products`].
pub(super) fn products(x: Group, tiles: Tiles, strips: Range<usize>, out: &mut [i32]) {
    let width = strips.len() * OUTPUTS;
    let quads = x.values.as_chunks::<QUAD>().0;
    for (place, strip) in strips.enumerate() {
        for row in 0..x.rows() {
            let mut sums = [-OFFSET * x.sums[row]; OUTPUTS];
            let quads = quads[row..].iter().step_by(x.rows());
            for (line, quad) in tiles.strip(strip).as_chunks::<LINE>().0.iter().zip(quads) {
                for (sum, weights) in sums.iter_mut().zip(line.as_chunks::<QUAD>().0) {
                    for (weight, x) in weights.iter().zip(quad) {
                        *sum += i32::from(*weight) * i32::from(*x);
                    }
                }
            }
            let start = row * width + place * OUTPUTS;
            out[start..start + OUTPUTS].copy_from_slice(&sums);
        }
    }
}

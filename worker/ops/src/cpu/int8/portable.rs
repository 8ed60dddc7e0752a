//! Products in 8 bits on any CPU, as a plain definition.

use super::{
    OUTPUTS,
    rows::{Group, OFFSET},
    tiles::QUAD,
};
use crate::memory::LINE;

/// See [`super::strip_products`].
pub(super) fn products(x: Group, strip: &[u8], out: &mut [i32], width: usize) {
    let (lines, quads) = (strip.as_chunks::<LINE>().0, x.values.as_chunks::<QUAD>().0);
    for row in 0..x.rows() {
        let mut sums = [-OFFSET * x.sums[row]; OUTPUTS];
        for (line, quad) in lines.iter().zip(quads[row..].iter().step_by(x.rows())) {
            for (sum, weights) in sums.iter_mut().zip(line.as_chunks::<QUAD>().0) {
                for (weight, x) in weights.iter().zip(quad) {
                    *sum += i32::from(*weight) * i32::from(*x);
                }
            }
        }
        out[row * width..row * width + OUTPUTS].copy_from_slice(&sums);
    }
}

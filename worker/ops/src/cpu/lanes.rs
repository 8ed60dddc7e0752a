//! Order of every f32 sum: sixteen lanes, fused multiply-adds and one fixed tree.
//!
//! Element `i` is added to lane `i % 16`; the lanes are added pairwise at distance 8, 4, 2, 1. The
//! order depends only on the length. So it is the same in any batch and at any register width.

use super::simd::Simd;
pub use super::simd::{LANES, Lanes};

/// Adds the lanes.
#[inline(always)]
pub fn sum(mut lanes: Lanes) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Computes dot products of `R` rows with one `w`, all of the same length. Each sum is independent
/// of the other rows.
#[inline(always)]
pub fn dot<S: Simd, const R: usize>(simd: S, rows: [&[f32]; R], w: &[f32]) -> [f32; R] {
    let (w_chunks, w_tail) = w.as_chunks::<LANES>();
    let mut sums = [simd.splat(0.0); R];
    for (i, w) in w_chunks.iter().enumerate() {
        let w = simd.load(w);
        for r in 0..R {
            let x = &rows[r].as_chunks::<LANES>().0[i];
            sums[r] = simd.mul_add(simd.load(x), w, sums[r]);
        }
    }
    let mut dots = [0.0; R];
    for r in 0..R {
        let mut lanes = [0.0; LANES];
        simd.store(sums[r], &mut lanes);
        let x_tail = &rows[r][w_chunks.len() * LANES..];
        for (l, (x, w)) in x_tail.iter().zip(w_tail).enumerate() {
            lanes[l] = x.mul_add(*w, lanes[l]);
        }
        dots[r] = sum(lanes);
    }
    dots
}

//! The order of every f32 sum: sixteen lanes, fused multiply-adds, one fixed tree.
//!
//! Element `i` goes to lane `i % 16`; lanes are added pairwise at distance 8, 4, 2, 1. The order
//! depends on the length alone, so it is the same in a batch and alone, and at any register width.

/// Lanes of a sum.
pub const LANES: usize = 16;

/// Sixteen running sums.
pub type Lanes = [f32; LANES];

/// Adds up the lanes.
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

/// Dot products of `R` rows with one `w`, all of the same length. Each is summed as if it were alone.
#[inline(always)]
pub fn dot<const R: usize>(rows: [&[f32]; R], w: &[f32]) -> [f32; R] {
    let (w_chunks, w_tail) = w.as_chunks::<LANES>();
    let chunked = rows.map(|row| row[..w.len()].as_chunks::<LANES>());
    let mut lanes = [[0.0; LANES]; R];
    for (i, w) in w_chunks.iter().enumerate() {
        for r in 0..R {
            let x = &chunked[r].0[i];
            for l in 0..LANES {
                lanes[r][l] = x[l].mul_add(w[l], lanes[r][l]);
            }
        }
    }
    for r in 0..R {
        for (l, (x, w)) in chunked[r].1.iter().zip(w_tail).enumerate() {
            lanes[r][l] = x.mul_add(*w, lanes[r][l]);
        }
    }
    lanes.map(sum)
}

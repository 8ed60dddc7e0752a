//! Products in 8 bits with AVX-512 VNNI: an instruction adds sixteen sums of four products.

use std::{arch::x86_64::*, ops::Range};

use super::{
    OUTPUTS, Tiles,
    rows::{Group, MAX_GROUP, OFFSET},
    tiles::{QUAD, STRIPS},
};
use crate::cpu::memory::LINE;

/// See [`super::products`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn products(x: Group, tiles: Tiles, strips: Range<usize>, out: &mut [i32]) {
    let width = strips.len() * OUTPUTS;
    // As many sums as registers hold, beside the weights.
    let most = if x.rows() <= MAX_GROUP / 2 { STRIPS } else { STRIPS / 2 };
    let mut strip = strips.start;
    while strip < strips.end {
        let count = match strips.end - strip {
            left if left >= most => most,
            left if left >= 2 => 2,
            _ => 1,
        };
        let place = (strip - strips.start) * OUTPUTS;
        dispatch(x, tiles, strip, count, &mut out[place..], width);
        strip += count;
    }
}

/// Picks the code for this many rows and strips.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dispatch(x: Group, tiles: Tiles, strip: usize, count: usize, out: &mut [i32], width: usize) {
    macro_rules! pick {
        ($($rows:literal)*) => {
            match (x.rows(), count) {
                $(
                    ($rows, 4) => block::<$rows, 4>(x, tiles, strip, out, width),
                    ($rows, 2) => block::<$rows, 2>(x, tiles, strip, out, width),
                    ($rows, _) => block::<$rows, 1>(x, tiles, strip, out, width),
                )*
                _ => unreachable!("a group has 1 to {MAX_GROUP} rows"),
            }
        };
    }
    pick!(1 2 3 4 5 6 7 8);
}

/// `R` rows with `S` strips from `strip` on. `out [R, width]` gets the sums at the beginning of each row.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn block<const R: usize, const S: usize>(
    x: Group,
    tiles: Tiles,
    strip: usize,
    out: &mut [i32],
    width: usize,
) {
    let quads = tiles.inputs() / QUAD;
    let weights: [&[u8]; S] = std::array::from_fn(|s| &tiles.strip(strip + s)[..quads * LINE]);
    let inputs = &x.values[..quads * R * QUAD];
    // Weights are kept above their values: this much comes out too large.
    let mut sums: [[__m512i; S]; R] =
        std::array::from_fn(|r| [_mm512_set1_epi32(-OFFSET * x.sums[r]); S]);
    for quad in 0..quads {
        let weights: [__m512i; S] = std::array::from_fn(|s| {
            // SAFETY: a line of a strip, by the length above; strips begin on a line.
            unsafe { _mm512_load_si512(weights[s].as_ptr().add(quad * LINE).cast()) }
        });
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: four inputs of row `r`, by the length above.
            let four = unsafe {
                inputs.as_ptr().add((quad * R + r) * QUAD).cast::<i32>().read_unaligned()
            };
            let four = _mm512_set1_epi32(four);
            for s in 0..S {
                sums[s] = _mm512_dpbusd_epi32(sums[s], weights[s], four);
            }
        }
    }
    for (sums, out) in sums.iter().zip(out.chunks_mut(width)) {
        for (sum, out) in sums.iter().zip(out.as_chunks_mut::<OUTPUTS>().0) {
            // SAFETY: sixteen sums of 32 bits are as large as the register.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), *sum) };
        }
    }
}

//! Products in 8 bits with AVX-512 VNNI: an instruction adds sixteen sums of four products.
//!
//! A strip is read sequentially, once for all rows of a group. From sixteen rows on, the products
//! of a line take as long as loading the next line from memory.

use std::arch::x86_64::*;

use super::{
    OUTPUTS,
    rows::{Group, MAX_GROUP, OFFSET},
    tiles::QUAD,
};
use crate::memory::LINE;

/// See [`super::strip_products`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn products(x: Group, strip: &[u8], next: &[u8], out: &mut [i32], width: usize) {
    // With few rows, each has several sums: an instruction must wait for the one that produced its
    // sum.
    match x.rows() {
        1 => block::<1, 4>(x, strip, next, out, width),
        2 => block::<2, 4>(x, strip, next, out, width),
        3 => block::<3, 2>(x, strip, next, out, width),
        4 => block::<4, 2>(x, strip, next, out, width),
        5 => block::<5, 1>(x, strip, next, out, width),
        6 => block::<6, 1>(x, strip, next, out, width),
        7 => block::<7, 1>(x, strip, next, out, width),
        8 => block::<8, 1>(x, strip, next, out, width),
        9 => block::<9, 1>(x, strip, next, out, width),
        10 => block::<10, 1>(x, strip, next, out, width),
        11 => block::<11, 1>(x, strip, next, out, width),
        12 => block::<12, 1>(x, strip, next, out, width),
        13 => block::<13, 1>(x, strip, next, out, width),
        14 => block::<14, 1>(x, strip, next, out, width),
        15 => block::<15, 1>(x, strip, next, out, width),
        MAX_GROUP => block::<MAX_GROUP, 1>(x, strip, next, out, width),
        rows => unreachable!("a group has 1 to {MAX_GROUP} rows, not {rows}"),
    }
}

/// Multiplies `R` rows with one strip, in `U` sums each, and writes the sums to the start of each
/// row of `out [R, width]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn block<const R: usize, const U: usize>(
    x: Group,
    strip: &[u8],
    next: &[u8],
    out: &mut [i32],
    width: usize,
) {
    let quads = strip.len() / LINE;
    assert!(quads.is_multiple_of(U) && x.values.len() == quads * R * QUAD);
    // Number of bytes of the next strip to prefetch at each quad.
    let ahead = next.len() / quads.max(1);
    let (strip, inputs, next) = (strip.as_ptr(), x.values.as_ptr(), next.as_ptr());
    let mut sums = [[_mm512_setzero_si512(); R]; U];
    for first in (0..quads).step_by(U) {
        for (u, sums) in sums.iter_mut().enumerate() {
            let quad = first + u;
            _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(quad * ahead).cast());
            // SAFETY: a line of the strip, which is aligned to lines.
            let weights = unsafe { _mm512_load_si512(strip.add(quad * LINE).cast()) };
            for (r, sum) in sums.iter_mut().enumerate() {
                // SAFETY: four inputs of row `r`, by the length above.
                let four =
                    unsafe { inputs.add((quad * R + r) * QUAD).cast::<i32>().read_unaligned() };
                *sum = _mm512_dpbusd_epi32(*sum, weights, _mm512_set1_epi32(four));
            }
        }
    }
    for (r, row) in x.sums.iter().enumerate() {
        // Weights are stored with 128 added; this is the excess.
        let mut sum = _mm512_set1_epi32(-OFFSET * row);
        for sums in &sums {
            sum = _mm512_add_epi32(sum, sums[r]);
        }
        let to = out[r * width..].first_chunk_mut::<OUTPUTS>().expect("a row has all its outputs");
        // SAFETY: the destination has the register's sixteen sums of 32 bits.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), sum) };
    }
}

//! Products in 4 bits with AVX2, which multiplies unsigned bytes with signed ones and adds pairs in
//! 16 bits.
//!
//! A pair of products with steps from 0 to 15 is at most 3,810, so that those of a whole group can
//! be added in 16 bits. Steps are stored with 8 added. The excess, 8 times the sum of the group's
//! inputs, is subtracted first, half of it from either pair of an output, which keeps both sums
//! within 30,480.

use std::arch::x86_64::*;

use super::{
    OFFSET,
    strips::{GROUP_LINES, Strip},
};
use crate::cpu::int8::{OUTPUTS, rows::Group, tiles::QUAD};

/// See [`super::strip_products`].
#[target_feature(enable = "avx2")]
pub(super) fn products(x: Group, strip: Strip, out: &mut [i32], width: usize) {
    let mut row = 0;
    while row < x.rows() {
        let out = &mut out[row * width..];
        row += match x.rows() - row {
            1 => block::<1>(x, row, strip, out, width),
            _ => block::<2>(x, row, strip, out, width),
        };
    }
}

/// Multiplies `R` rows from `row` on with one strip, and writes the sums to the start of each row
/// of `out [R, width]`. Returns `R`.
#[target_feature(enable = "avx2")]
fn block<const R: usize>(
    x: Group,
    row: usize,
    strip: Strip,
    out: &mut [i32],
    width: usize,
) -> usize {
    let mask = _mm256_set1_epi8(0x0F);
    let mut totals = [[_mm256_setzero_si256(); 2]; R];
    let quads = x.values.as_chunks::<QUAD>().0.chunks_exact(2 * GROUP_LINES * x.rows());
    let partial_sums = x.partial_sums.chunks_exact(x.rows());
    let groups = strip.lines.as_chunks::<GROUP_LINES>().0.iter().zip(strip.multipliers);
    for ((lines, multipliers), (quads, partial_sums)) in groups.zip(quads.zip(partial_sums)) {
        let mut sums: [[__m256i; 2]; R] = std::array::from_fn(|r| {
            let excess = i32::from(OFFSET) * partial_sums[row + r];
            [_mm256_set1_epi16((-excess / 2) as i16); 2]
        });
        for (line, quads) in lines.iter().zip(quads.chunks_exact(2 * x.rows())) {
            let (low, high) = quads.split_at(x.rows());
            let halves = line.as_chunks::<32>().0;
            for half in 0..2 {
                // SAFETY: the source has the register's 32 bytes.
                let bytes = unsafe { _mm256_loadu_si256(halves[half].as_ptr().cast()) };
                let first = _mm256_and_si256(bytes, mask);
                let second = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
                for (r, sums) in sums.iter_mut().enumerate() {
                    for (steps, quads) in [(first, low), (second, high)] {
                        let four = i32::from_le_bytes(quads[row + r].map(|x| x as u8));
                        let pairs = _mm256_maddubs_epi16(steps, _mm256_set1_epi32(four));
                        sums[half] = _mm256_add_epi16(sums[half], pairs);
                    }
                }
            }
        }
        for half in 0..2 {
            // SAFETY: the source has the eight bytes that are read.
            let bytes =
                unsafe { _mm_loadl_epi64(multipliers[half * OUTPUTS / 2..].as_ptr().cast()) };
            // Each multiplier twice, in 16 bits: once for either pair of its output.
            let multipliers = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(bytes, bytes));
            for (totals, sums) in totals.iter_mut().zip(&sums) {
                let products = _mm256_madd_epi16(sums[half], multipliers);
                totals[half] = _mm256_add_epi32(totals[half], products);
            }
        }
    }
    for (totals, out) in totals.into_iter().zip(out.chunks_mut(width)) {
        for (total, out) in totals.into_iter().zip(out.as_chunks_mut::<8>().0) {
            // SAFETY: the destination has the register's eight sums of 32 bits.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), total) };
        }
    }
    R
}

//! Products in 8 bits with AVX2, which multiplies unsigned bytes with signed ones and adds pairs in
//! 16 bits.
//!
//! Two products of 255 and 127 do not fit into 16 bits, and the instruction would saturate. So the
//! unsigned byte is a weight's magnitude, at most 127, and its sign moves to the input: two
//! products are at most 32,258.

use std::arch::x86_64::*;

use super::rows::Group;
use crate::memory::LINE;

/// See [`super::strip_products`].
#[target_feature(enable = "avx2")]
pub(super) fn products(x: Group, strip: &[u8], out: &mut [i32], width: usize) {
    let mut row = 0;
    while row < x.rows() {
        let out = &mut out[row * width..];
        row += match x.rows() - row {
            1 => block::<1>(x, row, strip, out, width),
            2 => block::<2>(x, row, strip, out, width),
            3 => block::<3>(x, row, strip, out, width),
            _ => block::<4>(x, row, strip, out, width),
        };
    }
}

/// Multiplies `R` rows from `row` on with one strip, and writes the sums to the start of each row
/// of `out [R, width]`. Returns `R`.
#[target_feature(enable = "avx2")]
fn block<const R: usize>(
    x: Group,
    row: usize,
    strip: &[u8],
    out: &mut [i32],
    width: usize,
) -> usize {
    let ones = _mm256_set1_epi16(1);
    let offset = _mm256_set1_epi8(i8::MIN);
    let mut sums = [[_mm256_setzero_si256(); 2]; R];
    let quads = x.values.as_chunks::<4>().0.chunks_exact(x.rows());
    for (line, quads) in strip.as_chunks::<LINE>().0.iter().zip(quads) {
        let halves = line.as_chunks::<32>().0;
        let weights: [_; 2] = std::array::from_fn(|half| {
            // SAFETY: the source has the register's 32 bytes.
            let raw = unsafe { _mm256_loadu_si256(halves[half].as_ptr().cast()) };
            _mm256_xor_si256(raw, offset)
        });
        let magnitudes = weights.map(|weights| _mm256_abs_epi8(weights));
        for (sums, quad) in sums.iter_mut().zip(&quads[row..row + R]) {
            let four = _mm256_set1_epi32(i32::from_le_bytes(quad.map(|x| x as u8)));
            for half in 0..2 {
                let signed = _mm256_sign_epi8(four, weights[half]);
                let pairs = _mm256_maddubs_epi16(magnitudes[half], signed);
                sums[half] = _mm256_add_epi32(sums[half], _mm256_madd_epi16(pairs, ones));
            }
        }
    }
    for (sums, out) in sums.into_iter().zip(out.chunks_mut(width)) {
        for (sum, out) in sums.into_iter().zip(out.as_chunks_mut::<8>().0) {
            // SAFETY: the destination has the register's eight sums of 32 bits.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sum) };
        }
    }
    R
}

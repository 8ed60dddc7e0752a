//! Products of integers on every instruction set, compared with exact ones.

use std::ops::Range;

use stoker_ops::cpu::{
    int8::{OUTPUTS, Rows},
    isa::Isa,
};

/// Pseudo-random numbers, the same for the same seed.
pub(crate) fn random(seed: u32) -> impl FnMut() -> u32 {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    }
}

/// Returns values within +-127, or only the two extremes.
pub(crate) fn values(count: usize, seed: u32, extreme: bool) -> Vec<i8> {
    let mut next = random(seed);
    let mut value = || {
        let number = next();
        if extreme { [-127, 127][number as usize % 2] } else { (number % 255) as u8 as i8 }
    };
    (0..count).map(|_| value().max(-127)).collect()
}

/// Number of strips that are multiplied together: neither a multiple of four nor of two.
const STRIPS: usize = 5;

/// Checks `products` of `rows` random rows with `weights [n, k]`, packed into `strips` strips, on
/// every instruction set.
pub(crate) fn check(
    rows: usize,
    weights: &[i8],
    k: usize,
    strips: usize,
    seed: u32,
    extreme: bool,
    products: impl Fn(Isa, &Rows, Range<usize>, &mut [i32]),
) {
    let n = weights.len() / k;
    let mut inputs = values(rows * k, seed, extreme);
    // The maximum of each row is 127, so that quantising changes nothing.
    for row in inputs.chunks_exact_mut(k) {
        row[0] = 127;
    }
    let want = exact(&inputs, weights, k);
    let x: Vec<f32> = inputs.iter().map(|x| f32::from(*x)).collect();
    for isa in Isa::available() {
        let quantized = Rows::quantize(isa, &x, k);
        let mut got = vec![0i64; rows * n];
        for first in (0..strips).step_by(STRIPS) {
            let strips = first..(first + STRIPS).min(strips);
            let width = strips.len() * OUTPUTS;
            let mut sums = vec![0; rows * width];
            products(isa, &quantized, strips, &mut sums);
            for (row, sums) in sums.chunks_exact(width).enumerate() {
                let (start, count) = (first * OUTPUTS, width.min(n - first * OUTPUTS));
                for (to, from) in got[row * n + start..][..count].iter_mut().zip(sums) {
                    *to = i64::from(*from);
                }
            }
        }
        assert_eq!(got, want, "{}: {rows} rows, {n} outputs, {k} inputs", isa.name());
    }
}

/// Returns the expected products, in 64 bits.
fn exact(x: &[i8], weights: &[i8], k: usize) -> Vec<i64> {
    let dot =
        |a: &[i8], b: &[i8]| a.iter().zip(b).map(|(a, b)| i64::from(*a) * i64::from(*b)).sum();
    let row = |x| weights.chunks_exact(k).map(move |w| dot(x, w));
    x.chunks_exact(k).flat_map(row).collect()
}

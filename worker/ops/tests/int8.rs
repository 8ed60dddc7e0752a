//! Products in 8 bits are exact, for any instruction set, shape and values.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use stoker_ops::cpu::{
    int8::{self, Int8, MAX_INPUTS, OUTPUTS, Rows, Tiles, tiles},
    isa::Isa,
};

/// Returns values within +-127, or only the two extremes.
fn values(count: usize, seed: u32, extreme: bool) -> Vec<i8> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            if extreme { [-127, 127][state as usize % 2] } else { (state % 255) as i8 as i16 as i8 }
        })
        .map(|value: i8| value.max(-127))
        .collect()
}

/// Number of strips that are multiplied together.
const STRIPS: usize = 4;

/// Returns the expected products, in 64 bits.
fn exact(x: &[i8], weights: &[i8], k: usize) -> Vec<i64> {
    let dot =
        |a: &[i8], b: &[i8]| a.iter().zip(b).map(|(a, b)| i64::from(*a) * i64::from(*b)).sum();
    let row = |x| weights.chunks_exact(k).map(move |w| dot(x, w));
    x.chunks_exact(k).flat_map(row).collect()
}

/// Checks the products of every instruction set, in rows of `n`.
fn check(rows: usize, n: usize, k: usize, seed: u32, extreme: bool) {
    let weights = values(n * k, seed, extreme);
    let mut inputs = values(rows * k, seed + 1, extreme);
    // The maximum of each row is 127, so that quantising changes nothing.
    for row in inputs.chunks_exact_mut(k) {
        row[0] = 127;
    }
    let want = exact(&inputs, &weights, k);
    let x: Vec<f32> = inputs.iter().map(|x| f32::from(*x)).collect();
    let lines = tiles::pack(&weights, k);
    let tiles = Tiles::new(bytemuck::cast_slice(&lines), k);
    for isa in Isa::available() {
        let quantized = Rows::quantize(isa, &x, k);
        let mut got = vec![0i64; rows * n];
        for first in (0..tiles.strips()).step_by(STRIPS) {
            let strips = first..(first + STRIPS).min(tiles.strips());
            let width = strips.len() * OUTPUTS;
            let mut sums = vec![0; rows * width];
            int8::products(isa, &quantized, 0..rows, tiles, strips, &mut sums);
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..Default::default() })]

    #[test]
    fn every_instruction_set_gives_the_exact_sum(
        rows in 1usize..70, n in 1usize..150, k in 1usize..300, seed: u32, extreme: bool,
    ) {
        check(rows, n, k, seed / 2, extreme);
    }

    #[test]
    fn packing_round_trips(n in 1usize..50, k in 1usize..200, seed: u32) {
        let weights = values(n * k, seed, false);
        let lines = tiles::pack(&weights, k);
        prop_assert_eq!(size_of_val(&lines[..]), tiles::packed_bytes(n, k));
        let tiles = Tiles::new(bytemuck::cast_slice(&lines), k);
        let mut row = vec![0; k];
        for (number, want) in weights.chunks_exact(k).enumerate() {
            tiles.read_row(number, &mut row);
            prop_assert_eq!(&row[..], want);
        }
    }

    #[test]
    fn a_quantised_weight_is_within_half_a_step(row in prop::collection::vec(-1e3f32..1e3, 1..100)) {
        let Int8 { values, scales } = Int8::quantize(&row, row.len());
        for (value, want) in values.iter().zip(&row) {
            let got = f32::from(*value) * scales[0];
            prop_assert!((got - want).abs() <= scales[0] * 0.501, "{} {}", got, want);
        }
    }
}

#[test]
fn products_of_real_widths_and_extreme_values_are_exact() {
    for k in [2048, 5632, MAX_INPUTS / 64 * 64] {
        for rows in [1, 2, 8, 9, 33] {
            check(rows, 33, k, 7, true);
        }
    }
}

#[test]
fn rows_of_zeros_and_of_tiny_numbers_stay_finite() {
    for x in [0.0, f32::MIN_POSITIVE / 8.0, -1e-42] {
        let quantized = Int8::quantize(&[x; 5], 5);
        assert!(quantized.scales[0].is_finite());
        let value = f32::from(quantized.values[0]) * quantized.scales[0];
        assert!((value - x).abs() <= x.abs(), "{x} became {value}");
    }
}

//! Products in 8 bits are exact, for any instruction set, shape and values.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod products;

use products::values;
use proptest::prelude::*;
use stoker_ops::cpu::int8::{self, Int8, MAX_INPUTS, Rows, Tiles, tiles};

/// Checks the products of every instruction set.
fn check(rows: usize, n: usize, k: usize, seed: u32, extreme: bool) {
    let weights = values(n * k, seed, extreme);
    let lines = tiles::pack(&weights, k);
    let tiles = Tiles::new(bytemuck::cast_slice(&lines), k);
    let products = |isa, x: &Rows, strips, sums: &mut [i32]| {
        int8::products(isa, x, 0..rows, tiles, strips, sums);
    };
    products::check(rows, &weights, k, tiles.strips(), seed + 1, extreme, products);
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

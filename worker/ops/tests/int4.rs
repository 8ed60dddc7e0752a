//! Weights in 4 bits: exact products for any instruction set, and a rounding that never changes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod products;

use products::random;
use proptest::prelude::*;
use stoker_ops::{
    cpu::{
        int4::{self, GROUP, Int4, Strips, quantize::round_scales, strips},
        int8::{Rows, Tiles},
        isa::Isa,
    },
    int4::{MAX_MULTIPLIER, MAX_VALUE, STEPS},
};

/// Returns steps times multipliers, and multipliers, of `n` rows: any, or only the extremes.
fn weights(n: usize, k: usize, seed: u32, extreme: bool) -> (Vec<i8>, Vec<i8>) {
    let mut next = random(seed);
    let sign = |number: u32| if number & 0x100 == 0 { 1 } else { -1 };
    let multipliers: Vec<i8> = (0..n * k.div_ceil(GROUP))
        .map(|_| {
            let number = next();
            let magnitude = if extreme { 15 } else { (number % 15) as i8 + 1 };
            sign(number) * magnitude
        })
        .collect();
    let values = (0..n * k)
        .map(|i| {
            let number = next();
            let step = if extreme { STEPS[number as usize % 2] } else { (number % 16) as i8 - 8 };
            step * multipliers[i / k * k.div_ceil(GROUP) + i % k / GROUP]
        })
        .collect();
    (values, multipliers)
}

/// Checks the products of every instruction set.
fn check(rows: usize, n: usize, k: usize, seed: u32, extreme: bool) {
    let (values, multipliers) = weights(n, k, seed, extreme);
    let lines = strips::pack(&values, &multipliers, k);
    let matrix = Strips::new(bytemuck::cast_slice(&lines), k);
    let products = |isa, x: &Rows, strips, sums: &mut [i32]| {
        int4::products(isa, x, 0..rows, matrix, strips, sums);
    };
    products::check(rows, &values, k, matrix.count(), seed + 1, extreme, products);
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
        let (values, multipliers) = weights(n, k, seed, false);
        let lines = strips::pack(&values, &multipliers, k);
        prop_assert_eq!(size_of_val(&lines[..]), strips::packed_bytes(n, k));
        let matrix = Strips::new(bytemuck::cast_slice(&lines), k);
        let mut row = vec![0; k];
        for (number, want) in values.chunks_exact(k).enumerate() {
            matrix.read_row(number, &mut row);
            prop_assert_eq!(&row[..], want);
        }
        // The same as tiles of 8 bits, for products with AMX.
        for isa in Isa::available() {
            let tiles = matrix.unpack(isa, 0..matrix.count());
            let tiles = Tiles::new(bytemuck::cast_slice(&tiles), k);
            for (number, want) in values.chunks_exact(k).enumerate() {
                tiles.read_row(number, &mut row);
                prop_assert_eq!(&row[..], want, "{:?}", isa);
            }
        }
    }

    #[test]
    fn a_weight_is_within_a_step_and_its_multiplier_is_the_best(
        row in prop::collection::vec(-1e3f32..1e3, 1..100),
    ) {
        let Int4 { multiplied, multipliers } = Int4::quantize(&row, row.len());
        let largest = row.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        let unit = f64::from(largest) / f64::from(MAX_VALUE);
        let groups = row.chunks(GROUP).zip(multiplied.values.chunks(GROUP)).zip(&multipliers);
        for ((row, values), multiplier) in groups {
            prop_assert!((1..=MAX_MULTIPLIER).contains(&multiplier.abs()));
            let error = |value: &dyn Fn(f64) -> f64| -> f64 {
                row.iter().map(|x| f64::from(*x) / unit).map(|x| (x - value(x)).powi(2)).sum()
            };
            let got: f64 = row.iter().zip(values).map(|(x, value)| {
                (f64::from(*x) / unit - f64::from(*value)).powi(2)
            }).sum();
            let is_step = |value: &i8| {
                value % multiplier == 0 && (STEPS[0]..=STEPS[1]).contains(&(value / multiplier))
            };
            prop_assert!(values.iter().all(is_step));
            // Not worse than the smallest multiplier that cuts off nothing, of either sign.
            let highest = row.iter().fold(0.0, |a: f64, x| a.max(f64::from(x.abs()) / unit));
            for sign in [1.0, -1.0] {
                let other = sign * (highest / 8.0).ceil().clamp(1.0, 15.0);
                let rounded = |x: f64| (x / other).round_ties_even().clamp(-8.0, 7.0) * other;
                prop_assert!(got <= error(&rounded) * (1.0 + 1e-9) + 1e-9);
            }
        }
    }
}

#[test]
fn products_of_real_widths_and_extreme_values_are_exact() {
    for k in [2048, 5632] {
        for rows in [1, 2, 3, 4, 5, 8, 9, 16, 17, 33] {
            check(rows, 83, k, 7, true);
        }
    }
}

#[test]
fn rows_of_zeros_and_of_tiny_numbers_stay_finite() {
    for x in [0.0, f32::MIN_POSITIVE / 8.0, -1e-42] {
        let Int4 { multiplied, .. } = Int4::quantize(&[x; 5], 5);
        assert!(multiplied.scales[0].is_finite());
        let value = f32::from(multiplied.values[0]) * multiplied.scales[0];
        assert!((value - x).abs() <= x.abs(), "{x} became {value}");
    }
}

#[test]
fn rounding_has_golden_values() {
    // Computed by another implementation of the rule. If one changes, the same file gives other
    // weights than in workers of an earlier version, and NUMERICS_VERSION must be incremented.
    let row: Vec<f32> = (0..72)
        .map(|i| ((i * i * 37 + 11 * i) % 201 - 100) as f32 / (1 + i / 32 * 3) as f32)
        .collect();
    let Int4 { multiplied, multipliers } = Int4::quantize(&row, row.len());
    assert_eq!((multiplied.scales, multipliers), (vec![100.0 / 120.0], vec![15, 4, 2]));
    let want = [
        -120, -60, 90, 75, -75, 90, 105, -30, -60, -30, 105, 90, -75, 75, 90, -60, -120, -90, 30,
        0, 60, -45, -45, 30, -30, -15, 90, 45, 90, -30, -45, 30, -16, -12, 8, -4, 4, -28, 24, -24,
        12, 12, -28, 12, 16, -16, -28, -16, 16, 8, 28, 4, 8, 28, 16, 20, -8, -20, -4, -28, 28, -12,
        28, -28, 0, -8, -2, -16, 14, -10, 12, 12,
    ];
    assert_eq!(multiplied.values, want);
    assert_eq!(stoker_ops::NUMERICS_VERSION, 2);
}

#[test]
fn the_steps_of_a_file_stay_and_its_scales_become_multipliers() {
    // Units, since the largest is 15. Halves go to the even multiplier.
    let steps: Vec<i8> = (0..4 * GROUP).map(|i| (i % 16) as i8 - 8).collect();
    let (mut values, mut multipliers) = (vec![0; steps.len()], vec![0; 4]);
    let scale = round_scales(&steps, &[15.0, -7.5, 6.5, 0.1], &mut values, &mut multipliers);
    assert_eq!((scale, &multipliers[..3]), (1.0, &[15, -8, 6][..]));
    for (group, multiplier) in multipliers.iter().enumerate().take(3) {
        let group = group * GROUP..(group + 1) * GROUP;
        let want: Vec<i8> = steps[group.clone()].iter().map(|step| step * multiplier).collect();
        assert_eq!(values[group], want);
    }
    // A scale of half a unit or less: at most 8 tenths of a unit.
    assert!(values[3 * GROUP..].iter().all(|value| (-1..=1).contains(value)));
    assert_eq!(values[3 * GROUP..3 * GROUP + 2], [-1, -1]);
}

#[test]
fn a_row_of_zero_scales_is_zero() {
    let (mut values, mut multipliers) = (vec![1; 40], vec![0; 2]);
    let scale = round_scales(&[7; 40], &[0.0, -0.0], &mut values, &mut multipliers);
    assert_eq!((scale, values, multipliers), (0.0, vec![0; 40], vec![1, 1]));
}

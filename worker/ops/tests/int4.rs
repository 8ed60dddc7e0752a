//! Weights in 4 bits: exact products for any instruction set, and a rounding that never changes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use stoker_ops::{
    cpu::{
        int4::{self, GROUP, Int4, Strips, quantize::round_scales, strips},
        int8::{OUTPUTS, Rows, Tiles},
        isa::Isa,
    },
    int4::{MAX_MULTIPLIER, MAX_VALUE, STEPS},
};

/// Returns pseudo-random numbers, the same for the same seed.
fn random(seed: u32) -> impl FnMut() -> u32 {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    }
}

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

/// Returns inputs within +-127, or only the two extremes.
fn inputs(rows: usize, k: usize, seed: u32, extreme: bool) -> Vec<i8> {
    let mut next = random(seed);
    let mut inputs: Vec<i8> = (0..rows * k)
        .map(|_| {
            let number = next();
            if extreme { [-127, 127][number as usize % 2] } else { (number % 255) as u8 as i8 }
        })
        .map(|value: i8| value.max(-127))
        .collect();
    // The maximum of each row is 127, so that quantising changes nothing.
    for row in inputs.chunks_exact_mut(k) {
        row[0] = 127;
    }
    inputs
}

/// Returns the expected products, in 64 bits.
fn exact(x: &[i8], weights: &[i8], k: usize) -> Vec<i64> {
    let dot =
        |a: &[i8], b: &[i8]| a.iter().zip(b).map(|(a, b)| i64::from(*a) * i64::from(*b)).sum();
    let row = |x| weights.chunks_exact(k).map(move |w| dot(x, w));
    x.chunks_exact(k).flat_map(row).collect()
}

/// Number of strips that are multiplied together.
const STRIPS: usize = 5;

/// Checks the products of every instruction set, in rows of `n`.
fn check(rows: usize, n: usize, k: usize, seed: u32, extreme: bool) {
    let (values, multipliers) = weights(n, k, seed, extreme);
    let inputs = inputs(rows, k, seed + 1, extreme);
    let want = exact(&inputs, &values, k);
    let x: Vec<f32> = inputs.iter().map(|x| f32::from(*x)).collect();
    let lines = strips::pack(&values, &multipliers, k);
    let matrix = Strips::new(bytemuck::cast_slice(&lines), k);
    for isa in Isa::available() {
        let quantized = Rows::quantize(isa, &x, k);
        let mut got = vec![0i64; rows * n];
        for first in (0..matrix.count()).step_by(STRIPS) {
            let strips = first..(first + STRIPS).min(matrix.count());
            let width = strips.len() * OUTPUTS;
            let mut sums = vec![0; rows * width];
            int4::products(isa, &quantized, 0..rows, matrix, strips, &mut sums);
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
    // Scales of 3, -1.5, 0.4 and 0.02: of a fifteenth of 3, they are 15, -7.5, 2 and 0.1.
    let steps: Vec<i8> = (0..4 * GROUP).map(|i| (i % 16) as i8 - 8).collect();
    let (mut values, mut multipliers) = (vec![0; steps.len()], vec![0; 4]);
    let scale = round_scales(&steps, &[3.0, -1.5, 0.4, 0.02], &mut values, &mut multipliers);
    assert_eq!((scale, &multipliers[..3]), (0.2, &[15, -8, 2][..]));
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

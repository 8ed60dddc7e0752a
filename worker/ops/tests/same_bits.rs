//! A row's bits do not depend on the batch, the threads or the instruction set.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::num::NonZeroUsize;

use stoker_ops::cpu::{
    attention::{Paged, paged_attention},
    isa::Isa,
    linear::{Matrix, linear, swiglu},
    norm::rms_norm,
    rope::rotate,
};
use stoker_ops::{KV_BLOCK, rope};

/// The widths at which burn's own product was seen to change its bits, and a small one.
const WIDTHS: [usize; 3] = [64, 2048, 5632];

/// Numbers of mixed sizes and signs, the same on every run.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state as f32 / u32::MAX as f32 - 0.5) * f32::powi(2.0, (state % 7) as i32 - 3)
        })
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn batched_equals_alone() {
    for k in WIDTHS {
        let n = 37;
        let weight = numbers(n * k, 1);
        let (up, bias) = (numbers(n * k, 2), numbers(n, 12));
        let matrix = |data| Matrix { data, k, bias: Some(&bias) };
        let (weight, up) = (matrix(&weight), matrix(&up));
        let x = numbers(33 * k, 3);
        for isa in Isa::available() {
            for rows in [1, 2, 3, 4, 5, 8, 33] {
                let batch = &x[..rows * k];
                let products = linear(isa, batch, weight);
                let gated = swiglu(isa, batch, weight, up);
                for i in 0..rows {
                    let row = &x[i * k..(i + 1) * k];
                    let at = i * n..(i + 1) * n;
                    assert_eq!(bits(&products[at.clone()]), bits(&linear(isa, row, weight)));
                    assert_eq!(bits(&gated[at]), bits(&swiglu(isa, row, weight, up)));
                }
            }
        }
    }
}

#[test]
fn every_instruction_set_and_thread_count_agrees() {
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let three = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    for k in WIDTHS.into_iter().chain([1, 15, 17, 172]) {
        let (x, w, up) = (numbers(5 * k, 4), numbers(40 * k, 5), numbers(40 * k, 6));
        let (gain, bias) = (numbers(k, 7), numbers(40, 13));
        let outcome = |isa: Isa| {
            let matrix = |data, bias| Matrix { data, k, bias };
            let mut all = linear(isa, &x, matrix(&w, None));
            all.extend(linear(isa, &x, matrix(&w, Some(&bias))));
            all.extend(swiglu(isa, &x, matrix(&w, None), matrix(&up, Some(&bias))));
            all.extend(rms_norm(isa, &x, &gain, 1e-5));
            bits(&all)
        };
        let want = one.install(|| outcome(Isa::best()));
        for isa in Isa::available() {
            assert_eq!(one.install(|| outcome(isa)), want, "{isa:?} at {k}");
            assert_eq!(three.install(|| outcome(isa)), want, "{isa:?} at {k}, three threads");
        }
    }
}

/// A cache for one sequence of `length`, its blocks in reverse order.
struct Sequence {
    keys: Vec<f32>,
    values: Vec<f32>,
    table: Vec<i32>,
}

const G: usize = 2;
const GROUP: usize = 3;
const D: usize = 24;

fn sequence(length: usize) -> Sequence {
    let blocks = length.div_ceil(KV_BLOCK);
    let size = blocks * G * KV_BLOCK * D;
    Sequence {
        keys: numbers(size, 8),
        values: numbers(size, 9),
        table: (0..blocks as i32).rev().collect(),
    }
}

fn attend(isa: Isa, s: &Sequence, queries: &[f32], positions: &[i32]) -> Vec<f32> {
    attend_within(isa, s, queries, positions, None)
}

fn attend_within(
    isa: Isa,
    s: &Sequence,
    queries: &[f32],
    positions: &[i32],
    window: Option<usize>,
) -> Vec<f32> {
    let rows = vec![0; positions.len()];
    let paged = Paged {
        keys: &s.keys,
        values: &s.values,
        tables: &s.table,
        blocks: s.table.len(),
        positions,
        rows: &rows,
        g: G,
        d: D,
        window: window.map(|window| NonZeroUsize::new(window).unwrap()),
    };
    paged_attention(isa, queries, paged)
}

#[test]
fn prefill_equals_decode_in_attention() {
    let length = 3 * KV_BLOCK + 5;
    let s = sequence(length);
    let width = G * GROUP * D;
    let queries = numbers(length * width, 10);
    let positions: Vec<i32> = (0..length as i32).collect();
    let whole = attend(Isa::best(), &s, &queries, &positions);
    for isa in Isa::available() {
        assert_eq!(bits(&attend(isa, &s, &queries, &positions)), bits(&whole), "{isa:?}");
        for p in 0..length {
            let row = p * width..(p + 1) * width;
            let alone = attend(isa, &s, &queries[row.clone()], &positions[p..=p]);
            assert_eq!(bits(&alone), bits(&whole[row]), "{isa:?} at position {p}");
        }
    }
}

/// Windows that end within a tile, at its border, and beyond the sequence.
const WINDOWS: [usize; 8] = [1, 2, KV_BLOCK - 1, KV_BLOCK, KV_BLOCK + 1, 2 * KV_BLOCK, 37, 500];

#[test]
fn prefill_equals_decode_in_a_sliding_window() {
    let length = 3 * KV_BLOCK + 5;
    let s = sequence(length);
    let width = G * GROUP * D;
    let queries = numbers(length * width, 10);
    let positions: Vec<i32> = (0..length as i32).collect();
    let unlimited = attend(Isa::best(), &s, &queries, &positions);
    for window in WINDOWS {
        let whole = attend_within(Isa::best(), &s, &queries, &positions, Some(window));
        for p in 0..length {
            let row = p * width..(p + 1) * width;
            // As long as nothing is cut off, a window changes no bit; after that it must.
            let same = bits(&whole[row.clone()]) == bits(&unlimited[row.clone()]);
            assert_eq!(same, p < window, "window {window} at position {p}");
            for isa in Isa::available() {
                let query = &queries[row.clone()];
                let alone = attend_within(isa, &s, query, &positions[p..=p], Some(window));
                assert_eq!(bits(&alone), bits(&whole[row.clone()]), "{isa:?}, {window} at {p}");
            }
        }
    }
}

#[test]
fn nothing_before_a_sliding_window_is_read() {
    let length = 3 * KV_BLOCK + 5;
    let clean = sequence(length);
    let queries = numbers(G * GROUP * D, 14);
    for window in WINDOWS {
        for p in 0..length {
            let mut s = sequence(length);
            for before in 0..(p + 1).saturating_sub(window) {
                let block = s.table[before / KV_BLOCK] as usize;
                for head in 0..G {
                    let start = ((block * G + head) * KV_BLOCK + before % KV_BLOCK) * D;
                    s.keys[start..start + D].fill(f32::NAN);
                    s.values[start..start + D].fill(f32::NAN);
                }
            }
            let at = |s| attend_within(Isa::best(), s, &queries, &[p as i32], Some(window));
            assert_eq!(bits(&at(&s)), bits(&at(&clean)), "window {window} at position {p}");
        }
    }
}

/// A hash of bits (FNV-1a over words).
fn hash(values: &[f32]) -> u64 {
    bits(values)
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn every_operation_has_these_bits() {
    // Golden: if one of these changes, the same request gives another answer than on workers of an
    // earlier version, and NUMERICS_VERSION must go up with it.
    let isa = Isa::best();
    let k = 100;
    let (x, w, up) = (numbers(3 * k, 21), numbers(7 * k, 22), numbers(7 * k, 23));
    let matrix = |data| Matrix { data, k, bias: None };
    let (weight, up) = (matrix(&w), matrix(&up));
    let biased = Matrix { bias: Some(&x), ..weight };
    let s = sequence(40);
    let queries = numbers(2 * G * GROUP * D, 24);
    let mut turned = numbers(2 * D, 25);
    rotate(isa, &mut turned, &rope::table(8, &rope::frequencies(D, 1e4)), &[3, 7], D);
    let hashes = [
        hash(&linear(isa, &x, weight)),
        hash(&swiglu(isa, &x, weight, up)),
        hash(&rms_norm(isa, &x, &w[..k], 1e-5)),
        hash(&attend(isa, &s, &queries, &[20, 39])),
        hash(&turned),
        hash(&linear(isa, &x, biased)),
        hash(&attend_within(isa, &s, &queries, &[20, 39], Some(19))),
    ];
    assert_eq!(stoker_ops::NUMERICS_VERSION, 1);
    assert_eq!(
        hashes,
        [
            8_640_174_691_675_875_606,
            7_605_741_044_209_091_265,
            5_145_260_703_490_255_865,
            15_059_157_064_970_682_642,
            15_547_259_373_706_009_144,
            7_569_571_810_272_657_698,
            11_358_515_580_676_696_406,
        ]
    );
}

#[test]
fn rotation_agrees_and_keeps_lengths() {
    let d = 32;
    let table = rope::table(600, &rope::frequencies(d, 1e4));
    let x = numbers(3 * 2 * d, 11);
    let positions = [0, 17, 599];
    let rotated = |isa| {
        let mut x = x.clone();
        rotate(isa, &mut x, &table, &positions, d);
        x
    };
    let want = rotated(Isa::best());
    assert_eq!(bits(&want[..2 * d]), bits(&x[..2 * d]), "position 0 turns nothing");
    for isa in Isa::available() {
        assert_eq!(bits(&rotated(isa)), bits(&want), "{isa:?}");
    }
    let square = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    for (a, b) in x.chunks_exact(d).zip(want.chunks_exact(d)) {
        assert!((square(a) - square(b)).abs() < 1e-5 * square(a));
    }
}

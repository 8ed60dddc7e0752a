//! The bits of a row do not depend on the batch, the threads or the instruction set.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::num::NonZeroUsize;

use half::f16;
use stoker_ops::cpu::{
    attention::{Paged, paged_attention},
    int4::{Int4, Strips, strips},
    int8::{Int8, Tiles, tiles},
    isa::Isa,
    kv::Element,
    matmul::{Inputs, Matrix, Weight, linear, swiglu},
    norm::rms_norm,
    pool::pool,
    rope::rotate,
};
use stoker_ops::{KV_BLOCK, memory::Line, rope};

/// Widths for which burn's own product changes its bits, and a small one.
const WIDTHS: [usize; 3] = [64, 2048, 5632];

/// Returns numbers of mixed sizes and signs, the same on every run.
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

/// A linear map with all formats of weights.
struct Map {
    k: usize,
    values: Vec<f32>,
    tiles: Vec<Line>,
    scales: Vec<f32>,
    strips: Vec<Line>,
    int4_scales: Vec<f32>,
    bias: Vec<f32>,
}

impl Map {
    fn new(n: usize, k: usize, seed: u32) -> Self {
        let values = numbers(n * k, seed);
        let int8 = Int8::quantize(&values, k);
        let tiles = tiles::pack(&int8.values, k);
        let int4 = Int4::quantize(&values, k);
        let strips = strips::pack(&int4.multiplied.values, &int4.multipliers, k);
        Self {
            k,
            values,
            tiles,
            scales: int8.scales,
            strips,
            int4_scales: int4.multiplied.scales,
            bias: numbers(n, seed + 100),
        }
    }

    fn float(&self) -> Weight<'_> {
        self.with(Matrix::Float(&self.values))
    }

    fn int8(&self) -> Weight<'_> {
        let tiles = Tiles::new(bytemuck::cast_slice(&self.tiles), self.k);
        self.with(Matrix::Int8(tiles, &self.scales))
    }

    fn int4(&self) -> Weight<'_> {
        let strips = Strips::new(bytemuck::cast_slice(&self.strips), self.k);
        self.with(Matrix::Int4(strips, &self.int4_scales))
    }

    fn with<'a>(&'a self, matrix: Matrix<'a>) -> Weight<'a> {
        Weight { matrix, n: self.scales.len(), bias: None }
    }

    /// Returns all formats, with and without a bias.
    fn all(&self) -> [Weight<'_>; 6] {
        let bias = Some(&self.bias[..]);
        let (float, int8, int4) = (self.float(), self.int8(), self.int4());
        let biased = |weight| Weight { bias, ..weight };
        [float, int8, int4, biased(float), biased(int8), biased(int4)]
    }
}

fn matmul(isa: Isa, x: &[f32], weight: Weight, k: usize) -> Vec<f32> {
    linear(&Inputs::new(isa, x, k, &[weight]), weight)
}

fn gated(isa: Isa, x: &[f32], gate: Weight, up: Weight, k: usize) -> Vec<f32> {
    swiglu(&Inputs::new(isa, x, k, &[gate, up]), gate, up)
}

#[test]
fn batched_equals_alone() {
    for k in WIDTHS {
        let n = 37;
        let (map, up) = (Map::new(n, k, 1), Map::new(n, k, 2));
        let x = numbers(64 * k, 3);
        for isa in Isa::available() {
            for (weight, up) in map.all().into_iter().zip(up.all()) {
                let alone = |i: usize| {
                    let row = &x[i * k..(i + 1) * k];
                    (bits(&matmul(isa, row, weight, k)), bits(&gated(isa, row, weight, up, k)))
                };
                let alone: Vec<_> = (0..64).map(alone).collect();
                for rows in [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 64] {
                    let batch = &x[..rows * k];
                    let products = matmul(isa, batch, weight, k);
                    let gates = gated(isa, batch, weight, up, k);
                    for (i, (product, gate)) in alone.iter().take(rows).enumerate() {
                        let at = i * n..(i + 1) * n;
                        assert_eq!(&bits(&products[at.clone()]), product, "{isa:?} {rows} rows");
                        assert_eq!(&bits(&gates[at]), gate, "{isa:?} {rows} rows");
                    }
                }
            }
        }
    }
}

#[test]
fn every_instruction_set_and_thread_count_gives_the_same_bits() {
    for k in WIDTHS.into_iter().chain([1, 15, 17, 172]) {
        let (x, map, up) = (numbers(70 * k, 4), Map::new(200, k, 5), Map::new(200, k, 6));
        let gain = numbers(k, 7);
        let results = |isa: Isa| {
            let mut all = x.clone();
            rms_norm(isa, &mut all, &gain, 1e-5);
            for (weight, up) in map.all().into_iter().zip(up.all()) {
                for rows in [5, 70] {
                    all.extend(matmul(isa, &x[..rows * k], weight, k));
                    all.extend(gated(isa, &x[..rows * k], weight, up, k));
                }
            }
            bits(&all)
        };
        let want = results(Isa::best());
        for isa in Isa::available() {
            assert_eq!(results(isa), want, "{isa:?} at {k}");
        }
        // Nested calls of the pool run on one thread.
        pool().run(1, |_| assert_eq!(results(Isa::best()), want, "one thread at {k}"));
    }
}

/// Shape of heads.
#[derive(Debug, Clone, Copy)]
struct Shape {
    g: usize,
    /// Number of query heads for each key-value head.
    group: usize,
    d: usize,
}

impl Shape {
    /// Number of elements of a token's queries.
    fn width(self) -> usize {
        self.g * self.group * self.d
    }
}

/// Heads that fill registers, and heads that do not.
const SHAPES: [Shape; 2] = [Shape { g: 2, group: 3, d: 24 }, Shape { g: 1, group: 8, d: 64 }];

/// A cache for one sequence, its blocks in reverse order.
struct Sequence<E> {
    shape: Shape,
    keys: Vec<E>,
    values: Vec<E>,
    table: Vec<i32>,
}

impl<E: Element> Sequence<E> {
    fn new(shape: Shape, length: usize) -> Self {
        let blocks = length.div_ceil(KV_BLOCK);
        let stored = |seed| {
            let numbers = numbers(blocks * shape.g * KV_BLOCK * shape.d, seed);
            let mut stored = vec![E::zeroed(); numbers.len()];
            E::narrow(&numbers, &mut stored);
            stored
        };
        Self {
            shape,
            keys: stored(8),
            values: stored(9),
            table: (0..blocks as i32).rev().collect(),
        }
    }

    fn attend(&self, isa: Isa, queries: &[f32], at: &[i32], window: Option<usize>) -> Vec<f32> {
        let paged = Paged {
            keys: &self.keys,
            values: &self.values,
            tables: &self.table,
            blocks: self.table.len(),
            positions: at,
            rows: &vec![0; at.len()],
            g: self.shape.g,
            d: self.shape.d,
            window: window.and_then(NonZeroUsize::new),
        };
        paged_attention(isa, queries, paged)
    }

    /// Overwrites the cached key and value of `position`.
    fn spoil(&mut self, position: usize, with: E) {
        let (d, block) = (self.shape.d, self.table[position / KV_BLOCK] as usize);
        let offset = position % KV_BLOCK;
        for head in 0..self.shape.g {
            let tile = (block * self.shape.g + head) * KV_BLOCK * d;
            for i in 0..d {
                self.keys[tile + i * KV_BLOCK + offset] = with;
                self.values[tile + offset * d + i] = with;
            }
        }
    }
}

/// Windows that end within a tile, at its boundary, and beyond the sequence.
const WINDOWS: [usize; 8] = [1, 2, KV_BLOCK - 1, KV_BLOCK, KV_BLOCK + 1, 2 * KV_BLOCK, 37, 500];

fn prefill_equals_decode_at<E: Element>(shape: Shape) {
    let length = 3 * KV_BLOCK + 5;
    let s = Sequence::<E>::new(shape, length);
    let queries = numbers(length * shape.width(), 10);
    let positions: Vec<i32> = (0..length as i32).collect();
    let unlimited = s.attend(Isa::best(), &queries, &positions, None);
    for window in WINDOWS.map(Some).into_iter().chain([None]) {
        let whole = s.attend(Isa::best(), &queries, &positions, window);
        for isa in Isa::available() {
            let again = s.attend(isa, &queries, &positions, window);
            assert_eq!(bits(&again), bits(&whole), "{isa:?}, window {window:?}");
        }
        for p in 0..length {
            let row = p * shape.width()..(p + 1) * shape.width();
            // A window changes the bits exactly if it hides a position.
            let same = bits(&whole[row.clone()]) == bits(&unlimited[row.clone()]);
            assert_eq!(same, window.is_none_or(|window| p < window), "{window:?} at {p}");
            for isa in Isa::available() {
                let alone = s.attend(isa, &queries[row.clone()], &positions[p..=p], window);
                assert_eq!(bits(&alone), bits(&whole[row.clone()]), "{isa:?}, {window:?} at {p}");
            }
        }
    }
}

#[test]
fn prefill_equals_decode_in_attention_and_in_sliding_windows() {
    for shape in SHAPES {
        prefill_equals_decode_at::<f32>(shape);
        prefill_equals_decode_at::<f16>(shape);
    }
}

#[test]
fn attention_reads_no_other_positions() {
    let length = 3 * KV_BLOCK + 5;
    for shape in SHAPES {
        let clean = Sequence::<f32>::new(shape, length);
        let queries = numbers(shape.width(), 14);
        for window in WINDOWS {
            for p in 0..length {
                let mut s = Sequence::<f32>::new(shape, length);
                let seen = (p + 1).saturating_sub(window)..p + 1;
                for position in (0..s.table.len() * KV_BLOCK).filter(|p| !seen.contains(p)) {
                    s.spoil(position, f32::NAN);
                }
                let at =
                    |s: &Sequence<f32>| s.attend(Isa::best(), &queries, &[p as i32], Some(window));
                assert_eq!(bits(&at(&s)), bits(&at(&clean)), "window {window} at position {p}");
            }
        }
    }
}

#[test]
fn a_row_that_is_not_finite_affects_no_other() {
    let (n, k) = (40, 100);
    let map = Map::new(n, k, 31);
    let x = numbers(9 * k, 32);
    for isa in Isa::available() {
        for weight in map.all() {
            let clean = matmul(isa, &x, weight, k);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut spoiled = x.clone();
                spoiled[4 * k + 17] = bad;
                let got = matmul(isa, &spoiled, weight, k);
                assert!(got[4 * n..5 * n].iter().all(|y| !y.is_finite()), "{isa:?} {bad}");
                assert_eq!(bits(&got[..4 * n]), bits(&clean[..4 * n]));
                assert_eq!(bits(&got[5 * n..]), bits(&clean[5 * n..]));
            }
        }
    }
}

/// FNV-1a hash of the bits, word by word.
fn hash(values: &[f32]) -> u64 {
    bits(values)
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn every_operation_has_golden_bits() {
    // Golden values: if one changes, the same request gets another response than from workers of an
    // earlier version, and NUMERICS_VERSION must be incremented.
    let isa = Isa::best();
    let k = 100;
    let x = numbers(3 * k, 21);
    let (map, up) = (Map::new(7, k, 22), Map::new(7, k, 23));
    let [float, int8, int4, biased, biased_int8, biased_int4] = map.all();
    let shape = SHAPES[0];
    let (s, half) = (Sequence::<f32>::new(shape, 40), Sequence::<f16>::new(shape, 40));
    let queries = numbers(2 * shape.width(), 24);
    let mut rotated = numbers(24, 25);
    rotate(isa, &mut rotated, &rope::table(8, &rope::frequencies(24, 1e4))[3 * 24..4 * 24]);
    let mut normed = x.clone();
    rms_norm(isa, &mut normed, &map.values[..k], 1e-5);
    let hashes = [
        hash(&matmul(isa, &x, float, k)),
        hash(&gated(isa, &x, float, up.float(), k)),
        hash(&normed),
        hash(&rotated),
        hash(&matmul(isa, &x, biased, k)),
        hash(&matmul(isa, &x, int8, k)),
        hash(&matmul(isa, &x, biased_int8, k)),
        hash(&gated(isa, &x, int8, up.int8(), k)),
        hash(&s.attend(isa, &queries, &[20, 39], None)),
        hash(&s.attend(isa, &queries, &[20, 39], Some(19))),
        hash(&half.attend(isa, &queries, &[20, 39], None)),
        hash(&matmul(isa, &x, int4, k)),
        hash(&matmul(isa, &x, biased_int4, k)),
        hash(&gated(isa, &x, int4, up.int4(), k)),
    ];
    assert_eq!(stoker_ops::NUMERICS_VERSION, 2);
    let want = [
        8_640_174_691_675_875_606,
        7_605_741_044_209_091_265,
        5_145_260_703_490_255_865,
        1_796_436_897_622_833_901,
        3_408_542_636_429_863_567,
        636_922_855_682_094_383,
        10_977_395_841_907_628_035,
        11_486_579_465_736_634_291,
        10_747_267_464_425_854_858,
        11_635_069_969_667_413_143,
        7_492_044_879_623_091_380,
        17_483_774_159_504_978_178,
        12_201_357_061_964_304_723,
        12_781_322_296_900_118_476,
    ];
    assert_eq!(hashes, want);
}

#[test]
fn rotation_is_the_same_everywhere_and_preserves_lengths() {
    let d = 32;
    let table = rope::table(600, &rope::frequencies(d, 1e4));
    let x = numbers(2 * d, 11);
    let rotated = |isa, position: usize| {
        let mut x = x.clone();
        rotate(isa, &mut x, &table[position * d..(position + 1) * d]);
        x
    };
    assert_eq!(bits(&rotated(Isa::best(), 0)), bits(&x), "position 0 rotates nothing");
    let square = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    for position in [1, 17, 599] {
        let want = rotated(Isa::best(), position);
        for isa in Isa::available() {
            assert_eq!(bits(&rotated(isa, position)), bits(&want), "{isa:?}");
        }
        assert_ne!(bits(&want), bits(&x));
        for (a, b) in x.chunks_exact(d).zip(want.chunks_exact(d)) {
            assert!((square(a) - square(b)).abs() < 1e-5 * square(a));
        }
    }
}

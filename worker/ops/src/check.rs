//! Check of every operation on a device against the reference, on shapes of a real model, for
//! machines without the test suite.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{DType, Device, Int, Tensor};

use crate::{
    KV_BLOCK,
    cpu::int8::Int8,
    draw::Draw,
    noise::Noise,
    ops::{self, Cache, CacheKind, Matrix, Norm, Qkv, Tokens, Weight},
    reference, rope,
};

/// Result of the check of one operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// Operation, with the format of its weights or its cache.
    pub operation: String,
    /// Shape of the operation.
    pub shape: String,
    /// Maximum difference from the reference, relative to the reference's largest value; infinite
    /// if the operation failed.
    pub difference: f32,
    /// Maximum allowed difference.
    pub limit: f32,
}

impl Check {
    /// Whether the difference is within the limit.
    pub fn passed(&self) -> bool {
        self.difference <= self.limit
    }
}

/// f32 sums in another order differ by a few units in the last place.
const F32: f32 = 2e-5;
/// Inputs are rounded to 8 bits. One halfway between two steps may be rounded the other way.
const INT8: f32 = 2e-2;
/// Keys and values are rounded to 11 bits.
const F16: f32 = 2e-3;

/// Inputs of most products, as in TinyLlama.
const INPUTS: usize = 2048;
/// Numbers of rows, from those of decode steps to those that fill tiles of tensor cores.
const ROWS: [usize; 6] = [1, 5, 8, 16, 24, 64];

/// Runs all checks.
pub fn all(device: &Device) -> Vec<Check> {
    let mut checks = Checks { device, done: Vec::new() };
    for int8 in [false, true] {
        for rows in ROWS {
            checks.products(rows, int8);
        }
    }
    for kind in [CacheKind::F32, CacheKind::F16] {
        checks.attention(kind);
    }
    checks.draws();
    checks.done
}

struct Checks<'a> {
    device: &'a Device,
    done: Vec<Check>,
}

/// A tensor on the CPU, and the same tensor on the device.
struct Both<T>(T, T);

impl Checks<'_> {
    /// Runs an operation on the device. If it fails or panics, the difference is infinite.
    fn add<const D: usize>(
        &mut self,
        operation: String,
        shape: String,
        limit: f32,
        want: Tensor<D>,
        got: impl FnOnce() -> Tensor<D>,
    ) {
        let read =
            |x: Tensor<D>| x.try_into_data().map(|data| data.iter::<f32>().collect::<Vec<_>>());
        let got = catch_unwind(AssertUnwindSafe(|| read(got()))).ok().and_then(Result::ok);
        let difference = match (got, read(want)) {
            (Some(got), Ok(want)) => difference(&got, &want),
            _ => f32::INFINITY,
        };
        self.done.push(Check { operation, shape, difference, limit });
    }

    fn floats<const D: usize>(&self, shape: [usize; D], seed: u32) -> Both<Tensor<D>> {
        let values = numbers(shape.iter().product(), seed);
        Both(
            ops::floats(values.clone(), shape, &Device::flex()),
            ops::floats(values, shape, self.device),
        )
    }

    fn ints<const D: usize>(&self, values: Vec<i32>, shape: [usize; D]) -> Both<Tensor<D, Int>> {
        Both(
            ops::ints(values.clone(), shape, &Device::flex()),
            ops::ints(values, shape, self.device),
        )
    }

    fn matrix(&self, n: usize, k: usize, int8: bool, seed: u32) -> Both<Matrix> {
        // Scaled so that outputs are about as large as inputs, as in a model.
        let size = (3.0 / k as f32).sqrt();
        let values: Vec<_> = numbers(n * k, seed).iter().map(|x| x * size).collect();
        let on = |device: &Device| match int8 {
            true => Matrix::int8(Int8::quantize(&values, k), k, device),
            false => Matrix::float(values.clone(), k, device),
        };
        Both(on(&Device::flex()), on(self.device))
    }

    fn weight(&self, n: usize, k: usize, int8: bool, seed: u32) -> Both<Weight> {
        let Both(here, there) = self.matrix(n, k, int8, seed);
        let bias = self.floats([n], seed + 1);
        Both(
            Weight { matrix: here, bias: Some(bias.0) },
            Weight { matrix: there, bias: Some(bias.1) },
        )
    }

    fn norm(&self, k: usize) -> Both<Norm> {
        let gain = self.floats([k], 9);
        Both(Norm { gain: gain.0, epsilon: 1e-5 }, Norm { gain: gain.1, epsilon: 1e-5 })
    }

    fn products(&mut self, t: usize, int8: bool) {
        let (n, k) = (1408, INPUTS);
        let (kind, limit) = if int8 { ("int8", INT8) } else { ("f32", F32) };
        let (x, residual) = (self.floats([t, k], 1), self.floats([t, n], 2));
        let (gate, up) = (self.weight(n, k, int8, 3), self.weight(n, k, int8, 5));
        let norm = self.norm(k);
        let shape = format!("{t} x {k} -> {n}");

        let ids = self.ints((0..t).map(|i| (i * 37 % n) as i32).collect(), [t]);
        let table = self.matrix(n, k, int8, 7);
        let want = reference::embed(ids.0, table.0);
        self.add(format!("embed, {kind}"), format!("{t} of {n} x {k}"), 0.0, want, || {
            ops::embed(ids.1, table.1)
        });
        let want = reference::linear_add(x.0.clone(), gate.0.clone(), residual.0);
        let (input, map) = (x.1.clone(), gate.1.clone());
        self.add(format!("linear_add, {kind}"), shape.clone(), limit, want, || {
            ops::linear_add(input, map, residual.1)
        });
        let want = reference::swiglu(x.0.clone(), norm.0.clone(), gate.0.clone(), up.0);
        let (input, map, by) = (x.1.clone(), gate.1.clone(), norm.1.clone());
        self.add(format!("swiglu, {kind}"), shape.clone(), limit, want, || {
            ops::swiglu(input, by, map, up.1)
        });
        let rows = self.ints((0..t as i32).rev().collect(), [t]);
        let want = reference::logits(x.0, rows.0, norm.0, gate.0);
        self.add(format!("logits, {kind}"), shape, limit, want, || {
            ops::logits(x.1, rows.1, norm.1, gate.1)
        });
    }

    /// Checks a prompt, and decoding sequences with contexts around the boundaries at which
    /// attention is split.
    fn attention(&mut self, kind: CacheKind) {
        let (h, g, d, k) = (32, 4, 64, INPUTS);
        let (name, dtype, limit) = match kind {
            CacheKind::F32 => ("f32", DType::F32, F32),
            CacheKind::F16 => ("f16", DType::F16, F16),
        };
        let sequences = [(0, 40), (127, 1), (128, 1), (700, 1)];
        let step = StepTokens::of(&sequences);
        let t = step.positions.len();
        let (x, norm) = (self.floats([t, k], 11), self.norm(k));
        let map = self.weight((h + 2 * g) * d, k, false, 12);
        let table = rope::table(1024, &rope::frequencies(d, 1e4));
        let angles = Both(
            ops::floats(table.clone(), [1024, d], &Device::flex()),
            ops::floats(table, [1024, d], self.device),
        );
        let old = numbers(2 * step.blocks * g * d * KV_BLOCK, 14);
        let (keys, values) = old.split_at(old.len() / 2);
        let cache = |device: &Device| {
            let on =
                |values: &[f32]| ops::floats(values.to_vec(), [values.len()], device).cast(dtype);
            Cache {
                keys: on(keys).reshape([step.blocks, g, d, KV_BLOCK]),
                values: on(values).reshape([step.blocks, g, KV_BLOCK, d]),
            }
        };
        let (here, there) = (step.on(&Device::flex()), step.on(self.device));
        let weights = |weight| Qkv { weight, norm: None };
        let (q, written) = reference::project_and_append(
            x.0,
            norm.0,
            weights(map.0),
            angles.0,
            &here,
            cache(&Device::flex()),
        );
        let want = reference::paged_attention(q, &here, &written, None);
        let shape = format!("{t} x {h} heads of {d}, contexts to 701");
        let cache = cache(self.device);
        self.add(format!("projection and attention, cache in {name}"), shape, limit, want, || {
            let (q, cache) =
                ops::project_and_append(x.1, norm.1, weights(map.1), angles.1, &there, cache);
            ops::paged_attention(q, &there, &cache, None)
        });
    }

    /// Checks that every token that a device draws is the defined one, unless the device reports it
    /// as uncertain.
    fn draws(&mut self) {
        let (m, n) = (64, 32_000);
        let logits: Vec<f32> = numbers(m * n, 15).iter().map(|x| x * 8.0).collect();
        let draw = |row: usize| Draw {
            temperature: [0.0, 0.6, 1.0, 1.5][row % 4],
            noise: Noise::new(1, 0, row),
        };
        let words = (0..m).flat_map(|row| draw(row).words()).collect();
        let (device, want) = (self.device, Tensor::<1>::zeros([1], &Device::flex()) + m as f32);
        self.add("draw".into(), format!("{m} of {n}"), 1e-1, want, || {
            let drawn = ops::draw(
                ops::floats(logits.clone(), [m, n], device),
                ops::ints(words, [m, Draw::WORDS], device),
            );
            let drawn: Vec<i32> = drawn.into_data().iter().collect();
            let rows = drawn.chunks_exact(2).zip(logits.chunks_exact(n)).enumerate();
            let mut certain = 0.0;
            for (row, (drawn, logits)) in rows {
                let right = draw(row).pick(logits, 0..n as u32).cast_signed();
                match drawn {
                    [token, 0] if *token != right => certain = f32::NAN,
                    [_, 0] => certain += 1.0,
                    _ => {}
                }
            }
            Tensor::<1>::zeros([1], &Device::flex()) + certain
        });
    }
}

/// Returns the largest difference, relative to the largest value of `want`, or to 1.
fn difference(got: &[f32], want: &[f32]) -> f32 {
    if got.len() != want.len() {
        return f32::INFINITY;
    }
    let size = want.iter().fold(1.0f32, |a, b| a.max(b.abs()));
    let apart = |(a, b): (&f32, &f32)| if a == b { 0.0 } else { (a - b).abs() / size };
    let largest = got.iter().zip(want).map(apart);
    // A maximum that preserves NaN.
    largest.fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a })
}

/// Integer inputs of a step, with separate blocks for each sequence.
struct StepTokens {
    positions: Vec<i32>,
    slots: Vec<i32>,
    rows: Vec<i32>,
    tables: Vec<i32>,
    sequences: usize,
    blocks: usize,
}

impl StepTokens {
    /// Creates the inputs of sequences of (cached tokens, new tokens).
    fn of(sequences: &[(usize, usize)]) -> Self {
        let needed = |(cached, new): &(usize, usize)| (cached + new).div_ceil(KV_BLOCK);
        let width = sequences.iter().map(needed).max().unwrap_or(1);
        let blocks = sequences.len() * width;
        let (mut positions, mut slots, mut rows) = (vec![], vec![], vec![]);
        let mut tables = Vec::new();
        for (row, (cached, new)) in sequences.iter().enumerate() {
            // Allocated from the end, so that no order is trivial.
            let block = |i: usize| blocks - 1 - row * width - i;
            tables.extend((0..width).map(|i| block(i) as i32));
            for position in *cached..cached + new {
                positions.push(position as i32);
                slots.push((block(position / KV_BLOCK) * KV_BLOCK + position % KV_BLOCK) as i32);
                rows.push(row as i32);
            }
        }
        Self { positions, slots, rows, tables, sequences: sequences.len(), blocks }
    }

    fn on(&self, device: &Device) -> Tokens {
        let ints = |values: &[i32]| ops::ints(values.to_vec(), [values.len()], device);
        let tables = [self.sequences, self.tables.len() / self.sequences];
        Tokens {
            positions: ints(&self.positions),
            slots: ints(&self.slots),
            rows: ints(&self.rows),
            tables: ops::ints(self.tables.clone(), tables, device),
        }
    }
}

/// Pseudo-random numbers from -1 to 1, determined by the seed.
pub(crate) fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_that_is_not_a_number_fails() {
        assert_eq!(difference(&[1.0, 4.0], &[1.0, 4.5]), 0.5 / 4.5);
        assert!(difference(&[f32::NAN, 4.0], &[1.0, 4.0]).is_nan());
        assert_eq!(difference(&[1.0], &[1.0, 4.0]), f32::INFINITY);
        let check = |difference| Check {
            operation: String::new(),
            shape: String::new(),
            difference,
            limit: 0.1,
        };
        assert!(check(0.1).passed() && !check(0.2).passed());
        assert!(!check(f32::NAN).passed() && !check(f32::INFINITY).passed());
    }
}

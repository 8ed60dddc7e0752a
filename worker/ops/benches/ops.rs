//! Each operation at TinyLlama's widths, for one, eight and thirty-two decoding tokens.
//!
//! Throughput is in bytes that an operation must read: weights, or keys and values. In a model they
//! are never in a cache, since other layers have evicted them. So each benchmark iterates over
//! copies.
#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

use std::{cell::Cell, hint::black_box, time::Duration};

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, measurement::WallTime};
use stoker_ops::{
    Cache, KV_BLOCK, Tokens,
    cpu::{
        int4::{Int4, strips},
        int8::{Int8, tiles},
    },
    ops::{self, CacheKind, Matrix, Norm, Qkv, Weight},
    rope,
};

const HIDDEN: usize = 2048;
const INNER: usize = 5632;
const HEADS: usize = 32;
const KV_HEADS: usize = 4;
const HEAD: usize = 64;
const VOCAB: usize = 32_000;
/// Context length of every sequence.
const CONTEXT: usize = 512;
/// Numbers of tokens in a step.
const ROWS: [usize; 3] = [1, 8, 32];
/// More bytes than any cache holds.
const BEYOND_CACHES: usize = 512 << 20;

/// Format of weights, with that of keys and values.
struct Kind {
    name: &'static str,
    matrix: fn(usize, usize) -> Matrix,
    /// Size of a matrix in bytes.
    bytes: fn(usize, usize) -> usize,
    cache: CacheKind,
}

const KINDS: [Kind; 3] = [
    Kind { name: "f32", matrix: float, bytes: |n, k| 4 * n * k, cache: CacheKind::F32 },
    Kind {
        name: "int8",
        matrix: int8,
        bytes: |n, k| tiles::packed_bytes(n, k) + 4 * n,
        cache: CacheKind::F16,
    },
    Kind {
        name: "int4",
        matrix: int4,
        bytes: |n, k| strips::packed_bytes(n, k) + 4 * n,
        cache: CacheKind::F16,
    },
];

fn float(n: usize, k: usize) -> Matrix {
    Matrix::float(values(n * k), k, &device())
}

fn int8(n: usize, k: usize) -> Matrix {
    Matrix::int8(Int8::quantize(&values(n * k), k), k, &device())
}

fn int4(n: usize, k: usize) -> Matrix {
    Matrix::int4(Int4::quantize(&values(n * k), k), k, &device())
}

fn device() -> Device {
    Device::flex()
}

/// Small numbers, neither all equal nor zero.
fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect()
}

fn floats<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values(shape.iter().product()), shape), &device())
}

fn ints<const D: usize>(data: Vec<i32>, shape: [usize; D]) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(data, shape), (&device(), DType::I32))
}

fn norm() -> Norm {
    Norm { gain: floats([HIDDEN]), epsilon: 1e-5 }
}

/// Equal values in different memory, used in rotation.
struct Copies<T> {
    all: Vec<T>,
    next: Cell<usize>,
}

impl<T> Copies<T> {
    /// Creates enough copies of `each` bytes to exceed any cache.
    fn new(each: usize, mut make: impl FnMut() -> T) -> Self {
        let count = BEYOND_CACHES.div_ceil(each);
        Self { all: (0..count).map(|_| make()).collect(), next: Cell::new(0) }
    }

    fn next(&self) -> &T {
        let index = self.next.get();
        self.next.set((index + 1) % self.all.len());
        &self.all[index]
    }
}

/// Returns one new token for each of `rows` sequences, at the end of its context.
fn tokens(rows: usize) -> Tokens {
    let blocks = CONTEXT / KV_BLOCK;
    let each = |of: fn(usize) -> usize| ints((0..rows).map(|r| of(r) as i32).collect(), [rows]);
    Tokens {
        positions: each(|_| CONTEXT - 1),
        slots: each(|row| row * CONTEXT + CONTEXT - 1),
        rows: each(|row| row),
        tables: ints((0..(rows * blocks) as i32).collect(), [rows, blocks]),
    }
}

/// Returns a cache with every position written. Unwritten positions take no memory and are free to
/// read.
fn full_cache(rows: usize, kind: CacheKind) -> Cache {
    let blocks = rows * CONTEXT / KV_BLOCK;
    let dtype = match kind {
        CacheKind::F32 => DType::F32,
        CacheKind::F16 => DType::F16,
    };
    Cache {
        keys: floats([blocks, KV_HEADS, HEAD, KV_BLOCK]).cast(dtype),
        values: floats([blocks, KV_HEADS, KV_BLOCK, HEAD]).cast(dtype),
    }
}

/// Measures an operation in one format for every number of rows. `bytes` returns the number of
/// bytes read for a number of rows. `prepare` creates the inputs and passes the operation to the
/// given function.
fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    kind: &Kind,
    bytes: impl Fn(usize) -> usize,
    mut prepare: impl FnMut(usize, &mut dyn FnMut(&mut dyn FnMut())),
) {
    for rows in ROWS {
        group.throughput(Throughput::Bytes(bytes(rows) as u64));
        let id = BenchmarkId::new(kind.name, rows);
        prepare(rows, &mut |run| {
            group.bench_function(id.clone(), |bencher| bencher.iter(&mut *run));
        });
    }
}

fn embed(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("embed");
    for kind in &KINDS {
        let table = (kind.matrix)(VOCAB, HIDDEN);
        let bytes = |rows| rows * (kind.bytes)(VOCAB, HIDDEN) / VOCAB;
        measure(&mut group, kind, bytes, |rows, bench| {
            let ids = ints((0..rows).map(|i| (i * 997 % VOCAB) as i32).collect(), [rows]);
            bench(&mut || drop(black_box(ops::embed(ids.clone(), table.clone()))));
        });
    }
}

fn project_and_append(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("project_and_append");
    let outputs = (HEADS + 2 * KV_HEADS) * HEAD;
    let angles = rope::table(CONTEXT, &rope::frequencies(HEAD, 1e4));
    let angles: Tensor<2> = Tensor::from_data(TensorData::new(angles, [CONTEXT, HEAD]), &device());
    for kind in &KINDS {
        let bytes = (kind.bytes)(outputs, HIDDEN);
        let weights = Copies::new(bytes, || Weight::from((kind.matrix)(outputs, HIDDEN)));
        measure(
            &mut group,
            kind,
            |_| bytes,
            |rows, bench| {
                let (x, norm, tokens) = (floats([rows, HIDDEN]), norm(), tokens(rows));
                // The only handle, since another would turn every write into a copy.
                let mut cache = Some(full_cache(rows, kind.cache));
                bench(&mut || {
                    let qkv = Qkv { weight: weights.next().clone(), norm: None };
                    let (x, norm, angles) = (x.clone(), norm.clone(), angles.clone());
                    let cached = cache.take().unwrap();
                    let (queries, written) =
                        ops::project_and_append(x, norm, qkv, angles, &tokens, cached);
                    black_box(queries);
                    cache = Some(written);
                });
            },
        );
    }
}

fn paged_attention(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("paged_attention");
    for kind in &KINDS {
        let bytes = |rows| rows * CONTEXT * 2 * KV_HEADS * HEAD * kind.cache.bytes();
        measure(&mut group, kind, bytes, |rows, bench| {
            let caches = Copies::new(bytes(rows), || full_cache(rows, kind.cache));
            let (queries, tokens) = (floats([rows, HEADS, HEAD]), tokens(rows));
            bench(&mut || {
                let cache = caches.next();
                black_box(ops::paged_attention(queries.clone(), &tokens, cache, None));
            });
        });
    }
}

fn linear_add(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("linear_add");
    for kind in &KINDS {
        let bytes = (kind.bytes)(HIDDEN, INNER);
        let weights = Copies::new(bytes, || Weight::from((kind.matrix)(HIDDEN, INNER)));
        measure(
            &mut group,
            kind,
            |_| bytes,
            |rows, bench| {
                let (x, residual) = (floats([rows, INNER]), floats([rows, HIDDEN]));
                bench(&mut || {
                    let weight = weights.next().clone();
                    black_box(ops::linear_add(x.clone(), weight, residual.clone()));
                });
            },
        );
    }
}

fn swiglu(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("swiglu");
    for kind in &KINDS {
        let bytes = (kind.bytes)(INNER, HIDDEN);
        let weights = Copies::new(bytes, || Weight::from((kind.matrix)(INNER, HIDDEN)));
        measure(
            &mut group,
            kind,
            |_| 2 * bytes,
            |rows, bench| {
                let (x, norm) = (floats([rows, HIDDEN]), norm());
                bench(&mut || {
                    let (gate, up) = (weights.next().clone(), weights.next().clone());
                    black_box(ops::swiglu(x.clone(), norm.clone(), gate, up));
                });
            },
        );
    }
}

fn logits(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("logits");
    for kind in &KINDS {
        let bytes = (kind.bytes)(VOCAB, HIDDEN);
        let heads = Copies::new(bytes, || Weight::from((kind.matrix)(VOCAB, HIDDEN)));
        measure(
            &mut group,
            kind,
            |_| bytes,
            |rows, bench| {
                let (x, norm) = (floats([rows, HIDDEN]), norm());
                let indices = ints((0..rows as i32).collect(), [rows]);
                bench(&mut || {
                    let head = heads.next().clone();
                    black_box(ops::logits(x.clone(), indices.clone(), norm.clone(), head));
                });
            },
        );
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    for operation in [embed, project_and_append, paged_attention, linear_add, swiglu, logits] {
        operation(&mut criterion);
    }
    criterion.final_summary();
}

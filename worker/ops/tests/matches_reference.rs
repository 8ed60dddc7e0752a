//! Each operation should match its reference in plain burn operations, whatever the shape.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::num::NonZeroUsize;

use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use proptest::prelude::*;
use stoker_ops::{
    Cache, KV_BLOCK, Tokens,
    cpu::int8::Int8,
    ops::{self, CacheKind, HeadNorm, Matrix, Norm, Qkv, Weight},
    reference, rope,
};

/// Relative to the largest element: f32 sums in another order differ by a few units of its last place.
const TOLERANCE: f32 = 2e-5;
/// Where inputs are rounded to 8 bits on the way: one that lies between two steps may go the other way.
const INT8_TOLERANCE: f32 = 2e-2;
/// Where keys and values are rounded to 11 bits on the way.
const F16_TOLERANCE: f32 = 2e-3;

fn device() -> Device {
    Device::flex()
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device())
}

fn ints<const D: usize>(data: Vec<i32>, shape: [usize; D]) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(data, shape), (&device(), DType::I32))
}

fn assert_close<const D: usize>(got: Tensor<D>, want: Tensor<D>, tolerance: f32) {
    assert_eq!(got.dims(), want.dims());
    let floats =
        |x: Tensor<D>| -> Vec<f32> { x.cast(DType::F32).into_data().try_to_vec().unwrap() };
    let (got, want) = (floats(got), floats(want));
    let size = want.iter().fold(1.0f32, |a, b| a.max(b.abs()));
    for (i, (a, b)) in got.iter().zip(&want).enumerate() {
        assert!((a - b).abs() <= tolerance * size, "element {i}: {a} is not {b}");
    }
}

/// How a weight is kept.
#[derive(Debug, Clone, Copy)]
struct Kind {
    int8: bool,
    biased: bool,
}

impl Kind {
    /// A linear map of `n` outputs over `k` inputs.
    fn weight(self, n: usize, k: usize) -> Weight {
        let bias = self.biased.then(|| random([n]));
        Weight { matrix: self.matrix(n, k), bias }
    }

    fn matrix(self, n: usize, k: usize) -> Matrix {
        let values: Vec<f32> = random([n, k]).into_data().try_to_vec().unwrap();
        if self.int8 {
            Matrix::int8(Int8::quantize(&values, k), k, &device())
        } else {
            Matrix::float(values, k, &device())
        }
    }

    fn tolerance(self) -> f32 {
        if self.int8 { INT8_TOLERANCE } else { TOLERANCE }
    }
}

fn norm(k: usize) -> Norm {
    Norm { gain: random([k]), epsilon: 1e-2 }
}

fn angles(positions: usize, d: usize) -> Tensor<2> {
    let table = rope::table(positions, &rope::frequencies(d, 1e4));
    Tensor::from_data(TensorData::new(table, [positions, d]), &device())
}

/// Sequences with `lengths` new tokens each, on top of `cached` old ones, in shuffled blocks.
fn tokens(lengths: &[usize], cached: &[usize]) -> (Tokens, usize) {
    let needed: Vec<usize> =
        lengths.iter().zip(cached).map(|(l, c)| (l + c).div_ceil(KV_BLOCK)).collect();
    let width = needed.iter().copied().max().unwrap_or(1);
    let total: usize = needed.iter().sum::<usize>() + 3;
    // Blocks are handed out from the end, so that neither order nor start is trivial.
    let mut free: Vec<i32> = (0..total as i32).collect();
    let (mut positions, mut slots, mut rows) = (vec![], vec![], vec![]);
    let mut tables = vec![0; lengths.len() * width];
    for (s, (length, cached)) in lengths.iter().zip(cached).enumerate() {
        for i in 0..needed[s] {
            tables[s * width + i] = free.pop().unwrap();
        }
        for p in *cached..cached + length {
            positions.push(p as i32);
            rows.push(s as i32);
            let block = tables[s * width + p / KV_BLOCK] as usize;
            slots.push((block * KV_BLOCK + p % KV_BLOCK) as i32);
        }
    }
    let t = positions.len();
    let tokens = Tokens {
        positions: ints(positions, [t]),
        slots: ints(slots, [t]),
        rows: ints(rows, [t]),
        tables: ints(tables, [lengths.len(), width]),
    };
    (tokens, total)
}

fn kinds() -> impl Strategy<Value = Kind> {
    (any::<bool>(), any::<bool>()).prop_map(|(int8, biased)| Kind { int8, biased })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..Default::default() })]

    #[test]
    fn embed(t in 1usize..34, n in 1usize..70, k in 1usize..200, kind in kinds()) {
        let table = kind.matrix(n, k);
        let ids = || ints((0..t).map(|i| (i * 7 % n) as i32).collect(), [t]);
        assert_close(ops::embed(ids(), table.clone()), reference::embed(ids(), table), 0.0);
    }

    #[test]
    fn linear_add_swiglu_and_logits(
        t in 1usize..34,
        n in 1usize..150,
        k in 1usize..200,
        kind in kinds(),
    ) {
        let (x, residual) = (random([t, k]), random([t, n]));
        let (w, up, norm) = (kind.weight(n, k), kind.weight(n, k), norm(k));
        assert_close(
            ops::linear_add(x.clone(), w.clone(), residual.clone()),
            reference::linear_add(x.clone(), w.clone(), residual),
            kind.tolerance(),
        );
        assert_close(
            ops::swiglu(x.clone(), norm.clone(), w.clone(), up.clone()),
            reference::swiglu(x.clone(), norm.clone(), w.clone(), up),
            kind.tolerance(),
        );
        let rows = || ints((0..t).step_by(3).map(|i| i as i32).collect(), [t.div_ceil(3)]);
        assert_close(
            ops::logits(x.clone(), rows(), norm.clone(), w.clone()),
            reference::logits(x, rows(), norm, w),
            kind.tolerance(),
        );
    }

    #[test]
    fn project_append_and_attend(
        sequences in prop::collection::vec((1usize..20, 0usize..40), 1..5),
        g in 1usize..4,
        group in 1usize..10,
        half in 1usize..20,
        k in 1usize..80,
        kind in kinds(),
        normed in any::<bool>(),
        f16 in any::<bool>(),
        window in prop::option::of(1usize..70),
    ) {
        let (lengths, cached): (Vec<_>, Vec<_>) = sequences.into_iter().unzip();
        let (tokens, blocks) = tokens(&lengths, &cached);
        let (h, d) = (g * group, half * 2);
        let t: usize = lengths.iter().sum();
        let x = random([t, k]);
        let head_norm = || HeadNorm { query: random([d]), key: random([d]), epsilon: 0.5 };
        let weights = Qkv {
            weight: kind.weight((h + 2 * g) * d, k),
            norm: normed.then(head_norm),
        };
        let norm = norm(k);
        let angles = angles(64, d);
        let window = window.and_then(NonZeroUsize::new);
        let cache_kind = if f16 { CacheKind::F16 } else { CacheKind::F32 };
        let dtype = if f16 { DType::F16 } else { DType::F32 };
        let data = (random([blocks, g, d, KV_BLOCK]), random([blocks, g, KV_BLOCK, d]));
        let cache = || {
            let empty = Cache::new(blocks, g, d, cache_kind, &device());
            prop_assert_eq!(empty.keys.dims(), data.0.dims());
            prop_assert_eq!(empty.values.dtype(), dtype);
            let (keys, values) = (data.0.clone().cast(dtype), data.1.clone().cast(dtype));
            Ok(Cache { keys, values })
        };
        let tolerance = kind.tolerance().max(if f16 { F16_TOLERANCE } else { 0.0 });

        let (q, after) = ops::project_and_append(
            x.clone(), norm.clone(), weights.clone(), angles.clone(), &tokens, cache()?);
        let (q_want, after_want) =
            reference::project_and_append(x, norm, weights, angles, &tokens, cache()?);
        assert_close(q.clone(), q_want, tolerance);
        assert_close(after.keys.clone(), after_want.keys, tolerance);
        assert_close(after.values.clone(), after_want.values, tolerance);
        assert_close(
            ops::paged_attention(q.clone(), &tokens, &after, window),
            reference::paged_attention(q, &tokens, &after, window),
            TOLERANCE,
        );
    }
}

#[test]
fn an_append_to_the_only_handle_is_in_place() {
    let (tokens, blocks) = tokens(&[3], &[0]);
    for kind in [CacheKind::F32, CacheKind::F16] {
        let cache = Cache::new(blocks, 1, 8, kind, &device());
        let address = |x: &Tensor<4>| -> usize {
            let primitive = x.clone().try_into_primitive::<burn::backend::Flex>().unwrap();
            primitive.bytes().as_ptr() as usize
        };
        let before = address(&cache.keys);
        let weight = Kind { int8: false, biased: false }.weight(3 * 8, 5);
        let weights = Qkv { weight, norm: None };
        let x = random([3, 5]);
        let (_, cache) = ops::project_and_append(x, norm(5), weights, angles(4, 8), &tokens, cache);
        assert_eq!(address(&cache.keys), before);
    }
}

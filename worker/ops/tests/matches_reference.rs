//! Each operation matches its reference in plain burn operations, for any shape.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::num::NonZeroUsize;

use burn::tensor::{DType, Device, Tensor, TensorData};
use proptest::prelude::*;
use stoker_ops::{
    Cache, KV_BLOCK,
    ops::{self, CacheKind, HeadNorm, Norm, Qkv},
    reference, rope,
};
use support::{Format, Map, On, Values, cpu, devices, has_half_precision, ints, random, tokens};

/// Relative to the largest element: f32 sums in another order differ by a few units in its last
/// place.
const TOLERANCE: f32 = 2e-5;
/// For inputs that are rounded to 8 bits. One halfway between two steps may be rounded the other
/// way.
const INT8_TOLERANCE: f32 = 2e-2;
/// For keys and values that are rounded to 11 bits.
const F16_TOLERANCE: f32 = 2e-3;

fn assert_close<const D: usize>(got: Tensor<D>, want: Tensor<D>, tolerance: f32) {
    assert_eq!(got.dims(), want.dims());
    let floats = |x: Tensor<D>| -> Vec<f32> { x.into_data().iter::<f32>().collect() };
    let (got, want) = (floats(got), floats(want));
    let size = want.iter().fold(1.0f32, |a, b| a.max(b.abs()));
    for (i, (a, b)) in got.iter().zip(&want).enumerate() {
        assert!((a - b).abs() <= tolerance * size, "element {i}: {a} is not {b}");
    }
}

/// Format of a weight.
#[derive(Debug, Clone, Copy)]
struct Kind {
    format: Format,
    biased: bool,
}

impl Kind {
    /// Returns a linear map of `n` outputs over `k` inputs.
    fn map(self, n: usize, k: usize) -> Map {
        Map { matrix: self.matrix(n, k), bias: self.biased.then(|| random([n])) }
    }

    fn matrix(self, n: usize, k: usize) -> Values {
        let values = random([n, k]).into_data().try_to_vec().unwrap();
        Values { format: self.format, values, k }
    }

    fn tolerance(self) -> f32 {
        if self.format == Format::Float { TOLERANCE } else { INT8_TOLERANCE }
    }
}

/// Returns an upper bound of attention scores. A weight is the exponential of a score, so an
/// absolute rounding error of the score is a relative error of the weight: large scores make
/// attention less exact in any order of its sums.
fn largest_score(queries: &Tensor<3>, cache: &Cache) -> f32 {
    let keys = cache.keys.clone().cast(DType::F32);
    let query = queries.clone().square().sum_dim(2).max().into_scalar::<f32>();
    let key = keys.square().sum_dim(2).max().into_scalar::<f32>();
    (query * key / queries.dims()[2] as f32).sqrt()
}

fn norm(k: usize) -> Norm {
    Norm { gain: random([k]), epsilon: 1e-2 }
}

fn angles(positions: usize, d: usize) -> Tensor<2> {
    let table = rope::table(positions, &rope::frequencies(d, 1e4));
    Tensor::from_data(TensorData::new(table, [positions, d]), &cpu())
}

/// Returns a configuration with PROPTEST_CASES cases, or 48 by default.
fn cases() -> ProptestConfig {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default(),
        None => ProptestConfig::with_cases(48),
    }
}

fn kinds() -> impl Strategy<Value = Kind> {
    (prop::sample::select(&Format::ALL[..]), any::<bool>())
        .prop_map(|(format, biased)| Kind { format, biased })
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn embed(t in 1usize..34, n in 1usize..70, k in 1usize..200, kind in kinds()) {
        let table = kind.matrix(n, k);
        let ids = ints((0..t).map(|i| (i * 7 % n) as i32).collect(), [t]);
        let want = reference::embed(ids.clone(), table.on(&cpu()));
        for device in devices() {
            let got = ops::embed(ids.on(&device), table.on(&device));
            assert_close(got, want.clone(), 0.0);
        }
    }

    #[test]
    fn linear_add_swiglu_and_logits(
        t in 1usize..34,
        n in 1usize..150,
        k in 1usize..200,
        kind in kinds(),
    ) {
        let (x, residual) = (random([t, k]), random([t, n]));
        let (w, up, norm) = (kind.map(n, k), kind.map(n, k), norm(k));
        let rows = ints((0..t).step_by(3).map(|i| i as i32).collect(), [t.div_ceil(3)]);
        let c = &cpu();
        let sum = reference::linear_add(x.clone(), w.on(c), residual.clone());
        let gated = reference::swiglu(x.clone(), norm.clone(), w.on(c), up.on(c));
        let logits = reference::logits(x.clone(), rows.clone(), norm.clone(), w.on(c));
        for d in &devices() {
            let (x, norm) = (|| x.on(d), || norm.on(d));
            let got = ops::linear_add(x(), w.on(d), residual.on(d));
            assert_close(got, sum.clone(), kind.tolerance());
            let got = ops::swiglu(x(), norm(), w.on(d), up.on(d));
            assert_close(got, gated.clone(), kind.tolerance());
            let got = ops::logits(x(), rows.on(d), norm(), w.on(d));
            assert_close(got, logits.clone(), kind.tolerance());
        }
    }

    #[test]
    fn project_append_and_attend(
        sequences in prop::collection::vec((1usize..20, 0usize..150), 1..5),
        g in 1usize..4,
        group in 1usize..10,
        half in 1usize..20,
        k in 1usize..80,
        kind in kinds(),
        normed in any::<bool>(),
        f16 in any::<bool>(),
        window in prop::option::of(1usize..170),
    ) {
        let (lengths, cached): (Vec<_>, Vec<_>) = sequences.into_iter().unzip();
        let (tokens, blocks) = tokens(&lengths, &cached);
        let (h, d) = (g * group, half * 2);
        let t: usize = lengths.iter().sum();
        let x = random([t, k]);
        let head_norm = HeadNorm { query: random([d]), key: random([d]), epsilon: 0.5 };
        let map = kind.map((h + 2 * g) * d, k);
        let weights = |device: &Device| Qkv {
            weight: map.on(device),
            norm: normed.then(|| head_norm.on(device)),
        };
        let norm = norm(k);
        let angles = angles(170, d);
        let window = window.and_then(NonZeroUsize::new);
        let cache_kind = if f16 { CacheKind::F16 } else { CacheKind::F32 };
        let dtype = if f16 { DType::F16 } else { DType::F32 };
        let cache = Cache {
            keys: random([blocks, g, d, KV_BLOCK]).cast(dtype),
            values: random([blocks, g, KV_BLOCK, d]).cast(dtype),
        };
        let tolerance = kind.tolerance().max(if f16 { F16_TOLERANCE } else { 0.0 });
        let (q_want, after_want) = reference::project_and_append(
            x.clone(),
            norm.clone(),
            weights(&cpu()),
            angles.clone(),
            &tokens,
            cache.clone(),
        );
        for device in &devices() {
            if f16 && !has_half_precision(device) {
                continue;
            }
            let empty = Cache::new(blocks, g, d, cache_kind, device);
            prop_assert_eq!(empty.keys.dims(), cache.keys.dims());
            prop_assert_eq!(empty.values.dtype(), dtype);
            let on_device = tokens.on(device);
            let (q, after) = ops::project_and_append(
                x.on(device),
                norm.on(device),
                weights(device),
                angles.on(device),
                &on_device,
                cache.on(device),
            );
            assert_close(q.clone(), q_want.clone(), tolerance);
            assert_close(after.keys.clone(), after_want.keys.clone(), tolerance);
            assert_close(after.values.clone(), after_want.values.clone(), tolerance);
            let (q_read, read) = (q.on(&cpu()), after.on(&cpu()));
            let tolerance = TOLERANCE.max(2.0 * f32::EPSILON * largest_score(&q_read, &read));
            assert_close(
                ops::paged_attention(q, &on_device, &after, window),
                reference::paged_attention(q_read, &tokens, &read, window),
                tolerance,
            );
        }
    }
}

#[test]
fn an_append_to_the_only_handle_is_in_place() {
    let (tokens, blocks) = tokens(&[3], &[0]);
    for kind in [CacheKind::F32, CacheKind::F16] {
        let cache = Cache::new(blocks, 1, 8, kind, &cpu());
        let address = |x: &Tensor<4>| -> usize {
            let primitive = x.clone().try_into_primitive::<burn::backend::Flex>().unwrap();
            primitive.bytes().as_ptr() as usize
        };
        let before = address(&cache.keys);
        let weight = Kind { format: Format::Float, biased: false }.map(3 * 8, 5).on(&cpu());
        let weights = Qkv { weight, norm: None };
        let x = random([3, 5]);
        let (_, cache) = ops::project_and_append(x, norm(5), weights, angles(4, 8), &tokens, cache);
        assert_eq!(address(&cache.keys), before);
    }
}

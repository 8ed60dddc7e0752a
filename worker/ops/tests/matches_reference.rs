//! Each operation should match its reference in plain burn operations, whatever the shape.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::num::NonZeroUsize;

use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use proptest::prelude::*;
use stoker_ops::{
    Cache, KV_BLOCK, Tokens,
    ops::{self, HeadNorm, Qkv, Weight},
    reference, rope,
};

/// Relative to the largest element: f32 sums in another order differ by a few units of its last place.
const TOLERANCE: f32 = 2e-5;

fn device() -> Device {
    Device::flex()
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device())
}

fn ints<const D: usize>(data: Vec<i32>, shape: [usize; D]) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(data, shape), (&device(), DType::I32))
}

fn assert_close<const D: usize>(got: Tensor<D>, want: Tensor<D>) {
    assert_eq!(got.dims(), want.dims());
    let got: Vec<f32> = got.into_data().try_to_vec().unwrap();
    let want: Vec<f32> = want.into_data().try_to_vec().unwrap();
    let size = want.iter().fold(1.0f32, |a, b| a.max(b.abs()));
    for (i, (a, b)) in got.iter().zip(&want).enumerate() {
        assert!((a - b).abs() <= TOLERANCE * size, "element {i}: {a} is not {b}");
    }
}

/// A linear map of `n` outputs over `k` inputs.
fn weight(n: usize, k: usize, biased: bool) -> Weight {
    Weight { matrix: random([n, k]), bias: biased.then(|| random([n])) }
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..Default::default() })]

    #[test]
    fn rms_norm(t in 1usize..34, k in 1usize..200, epsilon in 1e-6f32..1e-3) {
        let (x, gain) = (random([t, k]), random([k]));
        assert_close(
            ops::rms_norm(x.clone(), gain.clone(), epsilon),
            reference::rms_norm(x, gain, epsilon),
        );
    }

    #[test]
    fn linear_and_swiglu(
        t in 1usize..34,
        n in 1usize..70,
        k in 1usize..200,
        biased in any::<bool>(),
    ) {
        let (x, residual) = (random([t, k]), random([t, n]));
        let (w, up) = (weight(n, k, biased), weight(n, k, biased));
        assert_close(ops::linear(x.clone(), w.clone()), reference::linear(x.clone(), w.clone()));
        assert_close(
            ops::linear_add(x.clone(), w.clone(), residual.clone()),
            reference::linear_add(x.clone(), w.clone(), residual),
        );
        assert_close(
            ops::swiglu(x.clone(), w.clone(), up.clone()),
            reference::swiglu(x, w, up),
        );
    }

    #[test]
    fn project_append_and_attend(
        sequences in prop::collection::vec((1usize..20, 0usize..40), 1..5),
        g in 1usize..4,
        group in 1usize..4,
        half in 1usize..20,
        k in 1usize..80,
        biased in any::<bool>(),
        normed in any::<bool>(),
        window in prop::option::of(1usize..70),
    ) {
        let (lengths, cached): (Vec<_>, Vec<_>) = sequences.into_iter().unzip();
        let (tokens, blocks) = tokens(&lengths, &cached);
        let (h, d) = (g * group, half * 2);
        let t: usize = lengths.iter().sum();
        let x = random([t, k]);
        let norm = || HeadNorm { query: random([d]), key: random([d]), epsilon: 0.5 };
        let weights = Qkv {
            query: weight(h * d, k, biased),
            key: weight(g * d, k, biased),
            value: weight(g * d, k, biased),
            norm: normed.then(norm),
        };
        let angles = angles(64, d);
        let window = window.and_then(NonZeroUsize::new);
        let data = (random([blocks, g, KV_BLOCK, d]), random([blocks, g, KV_BLOCK, d]));
        let cache = || Cache { keys: data.0.clone(), values: data.1.clone() };

        let (q, after) = ops::project_and_append(
            x.clone(), weights.clone(), angles.clone(), &tokens, cache());
        let (q_want, after_want) =
            reference::project_and_append(x, weights, angles, &tokens, cache());
        assert_close(q.clone(), q_want);
        assert_close(after.keys.clone(), after_want.keys);
        assert_close(after.values.clone(), after_want.values);
        assert_close(
            ops::paged_attention(q.clone(), &tokens, &after, window),
            reference::paged_attention(q, &tokens, &after, window),
        );
    }
}

#[test]
fn an_append_to_the_only_handle_is_in_place() {
    let (tokens, blocks) = tokens(&[3], &[0]);
    let keys = random([blocks, 1, KV_BLOCK, 8]);
    let values = random([blocks, 1, KV_BLOCK, 8]);
    let address = |x: &Tensor<4>| -> usize {
        let primitive = x.clone().try_into_primitive::<burn::backend::Flex>().unwrap();
        primitive.as_slice::<f32>().unwrap().as_ptr() as usize
    };
    let before = address(&keys);
    let weight = || Weight::from(random([8, 5]));
    let weights = Qkv { query: weight(), key: weight(), value: weight(), norm: None };
    let cache = Cache { keys, values };
    let x = random([3, 5]);
    let (_, cache) = ops::project_and_append(x, weights, angles(4, 8), &tokens, cache);
    assert_eq!(address(&cache.keys), before);
}

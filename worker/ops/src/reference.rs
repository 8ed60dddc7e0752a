//! What each operation must compute, in plain burn operations: slow, and easy to believe.
//!
//! Every implementation is tested against these, within rounding.

use std::num::NonZeroUsize;

use burn::tensor::{Int, Tensor, activation, s};

use crate::{
    KV_BLOCK,
    ops::{Cache, Qkv, Tokens, Weight},
};

/// See [`crate::ops::DecoderOps::rms_norm`].
pub fn rms_norm(x: Tensor<2>, gain: Tensor<1>, epsilon: f32) -> Tensor<2> {
    let mean = x.clone().powf_scalar(2.0).mean_dim(1);
    x / (mean + epsilon).sqrt() * gain.unsqueeze()
}

/// See [`crate::ops::DecoderOps::linear`].
pub fn linear(x: Tensor<2>, weight: Weight) -> Tensor<2> {
    let y = x.matmul(weight.matrix.transpose());
    match weight.bias {
        None => y,
        Some(bias) => y + bias.unsqueeze(),
    }
}

/// See [`crate::ops::DecoderOps::linear_add`].
pub fn linear_add(x: Tensor<2>, weight: Weight, residual: Tensor<2>) -> Tensor<2> {
    residual + linear(x, weight)
}

/// See [`crate::ops::DecoderOps::swiglu`].
pub fn swiglu(x: Tensor<2>, gate: Weight, up: Weight) -> Tensor<2> {
    activation::silu(linear(x.clone(), gate)) * linear(x, up)
}

/// Turns `x [t, heads, d]` by the angles of `rope [p, d]` at `positions [t]`.
pub fn rotate(x: Tensor<3>, rope: Tensor<2>, positions: Tensor<1, Int>) -> Tensor<3> {
    let half = x.dims()[2] / 2;
    let angles: Tensor<3> = rope.select(0, positions).unsqueeze_dim(1);
    let (cos, sin) = (angles.clone().slice(s![.., .., ..half]), angles.slice(s![.., .., half..]));
    let (a, b) = (x.clone().slice(s![.., .., ..half]), x.slice(s![.., .., half..]));
    let first = a.clone() * cos.clone() - b.clone() * sin.clone();
    let second = b * cos + a * sin;
    Tensor::cat(vec![first, second], 2)
}

/// See [`crate::ops::DecoderOps::project_and_append`].
pub fn project_and_append(
    x: Tensor<2>,
    weights: Qkv,
    rope: Tensor<2>,
    tokens: &Tokens,
    cache: Cache,
) -> (Tensor<3>, Cache) {
    let [_, g, _, d] = cache.keys.dims();
    let t = x.dims()[0];
    let heads = |y: Tensor<2>| {
        let n = y.dims()[1];
        y.reshape([t, n / d, d])
    };
    let mut q = heads(linear(x.clone(), weights.query));
    let mut k = heads(linear(x.clone(), weights.key));
    let v = heads(linear(x, weights.value));
    if let Some(norm) = weights.norm {
        let normed = |x: Tensor<3>, gain| {
            let shape = x.dims();
            rms_norm(x.reshape([shape[0] * shape[1], d]), gain, norm.epsilon).reshape(shape)
        };
        q = normed(q, norm.query);
        k = normed(k, norm.key);
    }
    let q = rotate(q, rope.clone(), tokens.positions.clone());
    let k = rotate(k, rope, tokens.positions.clone());

    let Cache { mut keys, mut values } = cache;
    let slots: Vec<i32> = ints(tokens.slots.clone());
    for (i, slot) in slots.into_iter().enumerate() {
        let (block, offset) = (slot as usize / KV_BLOCK, slot as usize % KV_BLOCK);
        let at = s![block..block + 1, 0..g, offset..offset + 1, 0..d];
        let row = |from: &Tensor<3>| from.clone().slice(s![i..i + 1]).reshape([1, g, 1, d]);
        keys = keys.slice_assign(at, row(&k));
        values = values.slice_assign(at, row(&v));
    }
    (q, Cache { keys, values })
}

/// See [`crate::ops::DecoderOps::paged_attention`].
pub fn paged_attention(
    queries: Tensor<3>,
    tokens: &Tokens,
    cache: &Cache,
    window: Option<NonZeroUsize>,
) -> Tensor<2> {
    let [t, h, d] = queries.dims();
    let [_, g, _, _] = cache.keys.dims();
    let positions: Vec<i32> = ints(tokens.positions.clone());
    let rows: Vec<i32> = ints(tokens.rows.clone());
    let outputs: Vec<Tensor<2>> = (0..t)
        .map(|i| {
            let length = positions[i] as usize + 1;
            let first = window.map_or(0, |window| length.saturating_sub(window.get()));
            let row = rows[i] as usize;
            let blocks = length.div_ceil(KV_BLOCK);
            let table = tokens.tables.clone().slice(s![row..row + 1, 0..blocks]).reshape([blocks]);
            // [blocks, g, KV_BLOCK, d] -> [g, seen, d] -> [h, seen, d]
            let gather = |from: &Tensor<4>| -> Tensor<3> {
                from.clone()
                    .select(0, table.clone())
                    .swap_dims(0, 1)
                    .reshape([g, blocks * KV_BLOCK, d])
                    .slice(s![.., first..length])
                    .unsqueeze_dim::<4>(1)
                    .repeat_dim(1, h / g)
                    .reshape([h, length - first, d])
            };
            let q = queries.clone().slice(s![i..i + 1]).reshape([h, 1, d]);
            let scores = q.matmul(gather(&cache.keys).swap_dims(1, 2)) / (d as f32).sqrt();
            activation::softmax(scores, 2).matmul(gather(&cache.values)).reshape([1, h * d])
        })
        .collect();
    Tensor::cat(outputs, 0)
}

fn ints(tensor: Tensor<1, Int>) -> Vec<i32> {
    tensor.into_data().iter::<i32>().collect()
}

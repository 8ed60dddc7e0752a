//! Reference results of each operation, in plain burn operations: slow and simple.
//!
//! Every implementation is tested against these, within rounding errors.

use std::num::NonZeroUsize;

use burn::tensor::{DType, Int, Tensor, activation, s};

use crate::{
    KV_BLOCK,
    cpu::int8::{
        OUTPUTS,
        tiles::{INPUTS, QUAD},
    },
    int4::GROUP,
    ops::{Cache, Matrix, Norm, Qkv, Tokens, Weight},
};

/// `x / sqrt(mean(x^2) + epsilon) * gain` per row.
pub fn rms_norm(x: Tensor<2>, norm: Norm) -> Tensor<2> {
    let mean = x.clone().powf_scalar(2.0).mean_dim(1);
    x / (mean + norm.epsilon).sqrt() * norm.gain.unsqueeze()
}

/// `x * weight^T`: `[t, k], [n, k] -> [t, n]`.
pub fn linear(x: Tensor<2>, weight: Weight) -> Tensor<2> {
    let y = match weight.matrix {
        Matrix::Float(matrix) => x.matmul(matrix.transpose()),
        Matrix::Int8 { packed, scales, inputs } => {
            scaled(x, unpack(packed, scales.dims()[0], inputs), scales)
        }
        Matrix::Int4 { packed, scales, inputs } => {
            scaled(x, unpack_int4(packed, scales.dims()[0], inputs), scales)
        }
    };
    match weight.bias {
        None => y,
        Some(bias) => y + bias.unsqueeze(),
    }
}

/// Product of `x [t, k]`, quantised, and integers `[n, k]`, times both scales.
fn scaled(x: Tensor<2>, values: Tensor<2>, scales: Tensor<1>) -> Tensor<2> {
    let (x, steps) = quantize(x);
    x.matmul(values.transpose()) * steps * scales.unsqueeze()
}

/// Quantises each row of `x`: returns integers from -127 to 127, `[t, k]`, and the scale of each
/// row, `[t, 1]`.
fn quantize(x: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let largest = x.clone().abs().max_dim(1);
    let steps = largest.clone().recip() * 127.0;
    ((x * steps).round(), largest / 127.0)
}

/// Unpacks tiles into rows of floats: `[n, k]`. See [`crate::cpu::int8::tiles`].
fn unpack(tiles: Tensor<3, Int>, n: usize, k: usize) -> Tensor<2> {
    let [strips, tiles_a_strip, _] = tiles.dims();
    let quads = tiles_a_strip * INPUTS / QUAD;
    let values: Tensor<4, Int> = tiles.cast(DType::I32).reshape([strips, quads, OUTPUTS, QUAD]);
    let rows: Tensor<2, Int> = values.swap_dims(1, 2).reshape([strips * OUTPUTS, quads * QUAD]);
    rows.slice(s![0..n, 0..k]).float() - 128.0
}

/// Unpacks strips into rows of floats, steps times multipliers: `[n, k]`. See
/// [`crate::cpu::int4::strips`].
fn unpack_int4(strips: Tensor<3, Int>, n: usize, k: usize) -> Tensor<2> {
    let [count, lines, line] = strips.dims();
    let groups = k.next_multiple_of(INPUTS) / GROUP;
    let bytes: Tensor<2, Int> = strips.cast(DType::I32).reshape([count, lines * line]);
    let steps = groups * GROUP * OUTPUTS / 2;
    let end = lines * line;
    let multipliers = bytes.clone().slice(s![.., ..groups * OUTPUTS]).float();
    // Bytes of the multipliers are signed.
    let negative = multipliers.clone().greater_elem(127.0).float() * 256.0;
    let multipliers: Tensor<3> = (multipliers - negative).reshape([count, groups, OUTPUTS]);
    let bytes = bytes.slice(s![.., end - steps..end]).float();
    let high = (bytes.clone() / 16.0).floor();
    let low = bytes - high.clone() * 16.0;
    let lines = groups * GROUP / (2 * QUAD);
    let quads = |half: Tensor<2>| half.reshape([count, lines, 1, OUTPUTS, QUAD]);
    let steps: Tensor<5> = Tensor::cat(vec![quads(low), quads(high)], 2) - 8.0;
    let steps = steps.reshape([count, groups, GROUP / QUAD, OUTPUTS, QUAD]);
    let values = steps * multipliers.reshape([count, groups, 1, OUTPUTS, 1]);
    let values = values.reshape([count, groups * GROUP / QUAD, OUTPUTS, QUAD]).swap_dims(1, 2);
    values.reshape([count * OUTPUTS, groups * GROUP]).slice(s![0..n, 0..k])
}

/// See [`crate::ops::DecoderOps::embed`].
pub fn embed(ids: Tensor<1, Int>, table: Matrix) -> Tensor<2> {
    let rows = match table {
        Matrix::Float(matrix) => matrix,
        Matrix::Int8 { packed, scales, inputs } => {
            let n = scales.dims()[0];
            unpack(packed, n, inputs) * scales.reshape([n, 1])
        }
        Matrix::Int4 { packed, scales, inputs } => {
            let n = scales.dims()[0];
            unpack_int4(packed, n, inputs) * scales.reshape([n, 1])
        }
    };
    rows.select(0, ids)
}

/// See [`crate::ops::DecoderOps::linear_add`].
pub fn linear_add(x: Tensor<2>, weight: Weight, residual: Tensor<2>) -> Tensor<2> {
    residual + linear(x, weight)
}

/// See [`crate::ops::DecoderOps::swiglu`].
pub fn swiglu(x: Tensor<2>, norm: Norm, gate: Weight, up: Weight) -> Tensor<2> {
    let y = rms_norm(x, norm);
    activation::silu(linear(y.clone(), gate)) * linear(y, up)
}

/// See [`crate::ops::DecoderOps::logits`].
pub fn logits(x: Tensor<2>, rows: Tensor<1, Int>, norm: Norm, head: Weight) -> Tensor<2> {
    linear(rms_norm(x.select(0, rows), norm), head)
}

/// Rotates `x [t, heads, d]` by the angles of `rope [p, d]` at `positions [t]`.
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
    norm: Norm,
    weights: Qkv,
    rope: Tensor<2>,
    tokens: &Tokens,
    cache: Cache,
) -> (Tensor<3>, Cache) {
    let [_, g, d, _] = cache.keys.dims();
    let t = x.dims()[0];
    let projected = linear(rms_norm(x, norm), weights.weight);
    let h = projected.dims()[1] / d - 2 * g;
    let heads = projected.reshape([t, h + 2 * g, d]);
    let mut q = heads.clone().slice(s![.., ..h]);
    let mut k = heads.clone().slice(s![.., h..h + g]);
    let v = heads.slice(s![.., h + g..]);
    if let Some(norm) = weights.norm {
        let normed = |x: Tensor<3>, gain| {
            let shape = x.dims();
            let norm = Norm { gain, epsilon: norm.epsilon };
            rms_norm(x.reshape([shape[0] * shape[1], d]), norm).reshape(shape)
        };
        q = normed(q, norm.query);
        k = normed(k, norm.key);
    }
    let q = rotate(q, rope.clone(), tokens.positions.clone());
    let k = rotate(k, rope, tokens.positions.clone());

    let Cache { mut keys, mut values } = cache;
    let kind = keys.dtype();
    let slots: Vec<i32> = ints(tokens.slots.clone());
    for (i, slot) in slots.into_iter().enumerate() {
        let (block, offset) = (slot as usize / KV_BLOCK, slot as usize % KV_BLOCK);
        let row = |from: &Tensor<3>| from.clone().slice(s![i..i + 1]).cast(kind);
        let key = row(&k).reshape([1, g, d, 1]);
        keys = keys.slice_assign(s![block..block + 1, 0..g, 0..d, offset..offset + 1], key);
        let value = row(&v).reshape([1, g, 1, d]);
        values = values.slice_assign(s![block..block + 1, 0..g, offset..offset + 1, 0..d], value);
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
    let g = cache.keys.dims()[1];
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
            let gather = |from: Tensor<4>| -> Tensor<3> {
                from.select(0, table.clone())
                    .cast(DType::F32)
                    .swap_dims(0, 1)
                    .reshape([g, blocks * KV_BLOCK, d])
                    .slice(s![.., first..length])
                    .unsqueeze_dim::<4>(1)
                    .repeat_dim(1, h / g)
                    .reshape([h, length - first, d])
            };
            let q = queries.clone().slice(s![i..i + 1]).reshape([h, 1, d]);
            let scores = q.matmul(gather(cache.keys.clone().swap_dims(2, 3)).swap_dims(1, 2))
                / (d as f32).sqrt();
            activation::softmax(scores, 2).matmul(gather(cache.values.clone())).reshape([1, h * d])
        })
        .collect();
    Tensor::cat(outputs, 0)
}

fn ints(tensor: Tensor<1, Int>) -> Vec<i32> {
    tensor.into_data().iter::<i32>().collect()
}

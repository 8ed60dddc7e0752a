//! The glue between burn's CPU tensors and the kernels.

use std::num::NonZeroUsize;

use burn::{
    backend::{Flex, tensor::FloatTensor},
    tensor::{Shape, TensorData},
};
use burn_flex::FlexTensor;

use super::{
    attention::{Paged, paged_attention},
    isa::Isa,
    linear::{Matrix, linear, swiglu},
    norm::rms_norm,
    rope::rotate,
};
use crate::{
    KV_BLOCK,
    ops::{CacheOn, DecoderOps, HeadNormOn, ProjectedOn, QkvOn, TokensOn, WeightOn},
};

/// A tensor whose elements lie one after the other, copied only if they did not.
struct Contiguous(FlexTensor);

impl Contiguous {
    fn new(tensor: FlexTensor) -> Self {
        if tensor.as_slice::<f32>().is_some() || tensor.as_slice::<i32>().is_some() {
            Self(tensor)
        } else {
            Self(tensor.to_contiguous())
        }
    }

    fn floats(&self) -> &[f32] {
        self.0.as_slice().expect("the model keeps floats in f32, contiguous by construction")
    }

    fn ints(&self) -> &[i32] {
        self.0.as_slice().expect("the runner sends integers as i32, contiguous by construction")
    }

    fn dim(&self, i: usize) -> usize {
        self.0.layout().shape()[i]
    }
}

/// A linear map's tensors.
struct Weights {
    matrix: Contiguous,
    bias: Option<Contiguous>,
}

impl Weights {
    fn new(weight: WeightOn<Flex>) -> Self {
        match weight {
            WeightOn::Plain(matrix) => Self { matrix: Contiguous::new(matrix), bias: None },
            WeightOn::Biased(matrix, bias) => {
                Self { matrix: Contiguous::new(matrix), bias: Some(Contiguous::new(bias)) }
            }
        }
    }

    fn outputs(&self) -> usize {
        self.matrix.dim(0)
    }

    fn matrix(&self) -> Matrix<'_> {
        Matrix {
            data: self.matrix.floats(),
            k: self.matrix.dim(1),
            bias: self.bias.as_ref().map(Contiguous::floats),
        }
    }
}

fn tensor<const D: usize>(data: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(data, Shape::from(shape)))
}

impl DecoderOps for Flex {
    fn rms_norm(x: FloatTensor<Self>, gain: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        let (x, gain) = (Contiguous::new(x), Contiguous::new(gain));
        let out = rms_norm(Isa::best(), x.floats(), gain.floats(), epsilon);
        tensor(out, [x.dim(0), x.dim(1)])
    }

    fn linear(x: FloatTensor<Self>, weight: WeightOn<Self>) -> FloatTensor<Self> {
        let (x, weight) = (Contiguous::new(x), Weights::new(weight));
        let out = linear(Isa::best(), x.floats(), weight.matrix());
        tensor(out, [x.dim(0), weight.outputs()])
    }

    fn linear_add(
        x: FloatTensor<Self>,
        weight: WeightOn<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (x, weight) = (Contiguous::new(x), Weights::new(weight));
        let residual = Contiguous::new(residual);
        let mut out = linear(Isa::best(), x.floats(), weight.matrix());
        for (out, residual) in out.iter_mut().zip(residual.floats()) {
            *out += residual;
        }
        tensor(out, [x.dim(0), weight.outputs()])
    }

    fn project_and_append(
        x: FloatTensor<Self>,
        weights: QkvOn<Self>,
        rope: FloatTensor<Self>,
        tokens: TokensOn<Self>,
        cache: CacheOn<Self>,
    ) -> ProjectedOn<Self> {
        let isa = Isa::best();
        let (x, rope) = (Contiguous::new(x), Contiguous::new(rope));
        let (positions, slots) = (Contiguous::new(tokens.positions), Contiguous::new(tokens.slots));
        let project = |weight| linear(isa, x.floats(), Weights::new(weight).matrix());
        let CacheOn { mut keys, mut values } = cache;
        let shape = keys.layout().shape().clone();
        let (g, d) = (shape[1], shape[3]);

        let mut queries = project(weights.query);
        let mut new_keys = project(weights.key);
        let new_values = project(weights.value);
        if let HeadNormOn::Present { query, key, epsilon } = weights.norm {
            // A head is a row of `d`, whichever token it belongs to.
            queries = rms_norm(isa, &queries, Contiguous::new(query).floats(), epsilon);
            new_keys = rms_norm(isa, &new_keys, Contiguous::new(key).floats(), epsilon);
        }
        rotate(isa, &mut queries, rope.floats(), positions.ints(), d);
        rotate(isa, &mut new_keys, rope.floats(), positions.ints(), d);

        // In place while this is the only handle; a copy of the whole cache otherwise.
        append(keys.storage_mut(), &new_keys, slots.ints(), g, d);
        append(values.storage_mut(), &new_values, slots.ints(), g, d);
        let heads = queries.len() / (x.dim(0) * d).max(1);
        ProjectedOn { queries: tensor(queries, [x.dim(0), heads, d]), keys, values }
    }

    fn paged_attention(
        queries: FloatTensor<Self>,
        tokens: TokensOn<Self>,
        cache: CacheOn<Self>,
        window: Option<NonZeroUsize>,
    ) -> FloatTensor<Self> {
        let (queries, tables) = (Contiguous::new(queries), Contiguous::new(tokens.tables));
        let (positions, rows) = (Contiguous::new(tokens.positions), Contiguous::new(tokens.rows));
        let (keys, values) = (Contiguous::new(cache.keys), Contiguous::new(cache.values));
        let paged = Paged {
            keys: keys.floats(),
            values: values.floats(),
            tables: tables.ints(),
            blocks: tables.dim(1),
            positions: positions.ints(),
            rows: rows.ints(),
            g: keys.dim(1),
            d: keys.dim(3),
            window,
        };
        let out = paged_attention(Isa::best(), queries.floats(), paged);
        tensor(out, [queries.dim(0), queries.dim(1) * queries.dim(2)])
    }

    fn swiglu(x: FloatTensor<Self>, gate: WeightOn<Self>, up: WeightOn<Self>) -> FloatTensor<Self> {
        let x = Contiguous::new(x);
        let (gate, up) = (Weights::new(gate), Weights::new(up));
        let out = swiglu(Isa::best(), x.floats(), gate.matrix(), up.matrix());
        tensor(out, [x.dim(0), gate.outputs()])
    }
}

/// Writes `new [t, g, d]` into the slots of `cache [b, g, KV_BLOCK, d]`.
fn append(cache: &mut [f32], new: &[f32], slots: &[i32], g: usize, d: usize) {
    for (token, slot) in new.chunks_exact(g * d).zip(slots) {
        let (block, offset) = (*slot as usize / KV_BLOCK, *slot as usize % KV_BLOCK);
        for (head, row) in token.chunks_exact(d).enumerate() {
            let start = ((block * g + head) * KV_BLOCK + offset) * d;
            cache[start..start + d].copy_from_slice(row);
        }
    }
}

//! Glue between burn's GPU tensors and the kernels.

use std::num::NonZeroUsize;

use burn::{
    backend::tensor::{FloatTensor, IntTensor},
    tensor::Bytes,
};
use burn_cubecl::CubeBackend;

use super::{
    attention::{self, TokenBuffers},
    buffer::Buffer,
    draw, embed, float,
    int8::{self, Matrix as Int8Matrix},
    pack,
    project::{self, Norms},
    rows::{self, Prepare},
};
use crate::ops::{
    BiasOn, CacheOn, DecoderOps, HeadNormOn, MatrixOn, NormOn, ProjectedOn, QkvOn, TokensOn,
    WeightOn, in_place::InPlace,
};

/// Buffers of a matrix.
#[allow(clippy::large_enum_variant, reason = "burn's handles are large; there are a few a layer")]
enum Matrix {
    Float(Buffer),
    Int8 { matrix: Int8Matrix, inputs: usize },
}

impl Matrix {
    fn new(matrix: MatrixOn<CubeBackend>) -> Self {
        match matrix {
            MatrixOn::Float(matrix) => Self::Float(Buffer::new(matrix)),
            MatrixOn::Int8 { packed, scales, inputs } => {
                let (values, scales) = (Buffer::new(packed), Buffer::new(scales));
                let matrix = Int8Matrix { values, scales };
                Self::Int8 { matrix, inputs }
            }
            MatrixOn::Int4 { .. } => unreachable!("`Matrix::int4` packs 8 bits for GPUs"),
        }
    }
}

/// Buffers of a linear map.
struct Weight {
    matrix: Matrix,
    bias: Option<Buffer>,
}

impl Weight {
    fn new(weight: WeightOn<CubeBackend>) -> Self {
        let bias = match weight.bias {
            BiasOn::Absent => None,
            BiasOn::Present(bias) => Some(Buffer::new(bias)),
        };
        Self { matrix: Matrix::new(weight.matrix), bias }
    }

    /// Computes `prepared x * weight^T (+ residual)`.
    fn linear(&self, x: &Buffer, prepare: &Prepare, residual: Option<&Buffer>) -> Buffer {
        let bias = self.bias.as_ref();
        match &self.matrix {
            Matrix::Float(matrix) => {
                float::linear(&rows::prepare(x, prepare), matrix, bias, residual)
            }
            Matrix::Int8 { matrix, .. } => {
                int8::linear(&rows::quantize(x, prepare), matrix, bias, residual)
            }
        }
    }
}

impl DecoderOps for CubeBackend {
    fn pack(values: IntTensor<Self>) -> IntTensor<Self> {
        pack::pack(values)
    }

    fn pack_int4(_: IntTensor<Self>, _: IntTensor<Self>) -> IntTensor<Self> {
        unreachable!("`Matrix::int4` packs 8 bits for GPUs")
    }

    fn embed(ids: IntTensor<Self>, table: MatrixOn<Self>) -> FloatTensor<Self> {
        let ids = Buffer::new(ids);
        let out = match Matrix::new(table) {
            Matrix::Float(table) => embed::float(&ids, &table),
            Matrix::Int8 { matrix, inputs } => embed::int8(&ids, &matrix, inputs),
        };
        out.0
    }

    fn project_and_append(
        x: FloatTensor<Self>,
        norm: NormOn<Self>,
        weights: QkvOn<Self>,
        rope: FloatTensor<Self>,
        tokens: TokensOn<Self>,
        cache: CacheOn<Self>,
    ) -> ProjectedOn<Self> {
        let (x, gain, rope) = (Buffer::new(x), Buffer::new(norm.gain), Buffer::new(rope));
        let (positions, slots) = (Buffer::new(tokens.positions), Buffer::new(tokens.slots));
        let (keys, values) = (Buffer::to_write(cache.keys), Buffer::to_write(cache.values));
        let prepare = Prepare { rows: None, norm: Some((&gain, norm.epsilon)) };
        let projected = Weight::new(weights.weight).linear(&x, &prepare, None);
        let gains = match weights.norm {
            HeadNormOn::Absent => None,
            HeadNormOn::Present { query, key, epsilon } => {
                Some((Buffer::new(query), Buffer::new(key), epsilon))
            }
        };
        let norms =
            gains.as_ref().map(|(query, key, epsilon)| Norms { query, key, epsilon: *epsilon });
        let queries = project::rotate_and_append(
            &projected,
            &rope,
            &positions,
            &slots,
            norms.as_ref(),
            &keys,
            &values,
        );
        ProjectedOn { queries: queries.0, keys: keys.0, values: values.0 }
    }

    fn paged_attention(
        queries: FloatTensor<Self>,
        tokens: TokensOn<Self>,
        cache: CacheOn<Self>,
        window: Option<NonZeroUsize>,
    ) -> FloatTensor<Self> {
        let tokens = TokenBuffers {
            positions: &Buffer::new(tokens.positions),
            rows: &Buffer::new(tokens.rows),
            tables: &Buffer::new(tokens.tables),
        };
        let (keys, values) = (Buffer::new(cache.keys), Buffer::new(cache.values));
        attention::paged_attention(&Buffer::new(queries), &tokens, &keys, &values, window).0
    }

    fn linear_add(
        x: FloatTensor<Self>,
        weight: WeightOn<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let prepare = Prepare { rows: None, norm: None };
        let residual = Buffer::new(residual);
        Weight::new(weight).linear(&Buffer::new(x), &prepare, Some(&residual)).0
    }

    fn swiglu(
        x: FloatTensor<Self>,
        norm: NormOn<Self>,
        gate: WeightOn<Self>,
        up: WeightOn<Self>,
    ) -> FloatTensor<Self> {
        let (x, gain) = (Buffer::new(x), Buffer::new(norm.gain));
        let prepare = Prepare { rows: None, norm: Some((&gain, norm.epsilon)) };
        let (gate, up) = (Weight::new(gate), Weight::new(up));
        let biases = (gate.bias.as_ref(), up.bias.as_ref());
        let out = match (&gate.matrix, &up.matrix) {
            (Matrix::Int8 { matrix: g, .. }, Matrix::Int8 { matrix: u, .. }) => {
                int8::swiglu(&rows::quantize(&x, &prepare), (g, biases.0), (u, biases.1))
            }
            (Matrix::Float(g), Matrix::Float(u)) => {
                float::swiglu(&rows::prepare(&x, &prepare), (g, biases.0), (u, biases.1))
            }
            _ => unreachable!("both have the same inputs, so both have the same format"),
        };
        out.0
    }

    fn logits(
        x: FloatTensor<Self>,
        rows: IntTensor<Self>,
        norm: NormOn<Self>,
        head: WeightOn<Self>,
    ) -> FloatTensor<Self> {
        let (x, rows, gain) = (Buffer::new(x), Buffer::new(rows), Buffer::new(norm.gain));
        let prepare = Prepare { rows: Some(&rows), norm: Some((&gain, norm.epsilon)) };
        Weight::new(head).linear(&x, &prepare, None).0
    }

    fn draw(logits: FloatTensor<Self>, draws: IntTensor<Self>) -> IntTensor<Self> {
        draw::draw(&Buffer::new(logits), &Buffer::new(draws)).0
    }
}

impl InPlace for CubeBackend {
    fn view(buffer: IntTensor<Self>, start: usize, count: usize) -> IntTensor<Self> {
        Buffer::new(buffer).view(start, count).0
    }

    fn overwrite(buffer: IntTensor<Self>, values: Vec<i32>) -> IntTensor<Self> {
        buffer.client.write(&buffer.handle, Bytes::from_elems(values));
        buffer
    }
}

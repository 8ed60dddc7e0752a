//! The glue between burn's CPU tensors and the kernels.

use std::num::NonZeroUsize;

use burn::{
    backend::{
        Flex,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{AllocationProperty, Bytes, DType, Element as _, Shape, TensorData, f16},
};
use burn_flex::FlexTensor;

use super::{
    attention::{Paged, paged_attention},
    clock::Timed,
    int4::{self, Strips, strips::strip_bytes},
    int8::{
        self, OUTPUTS, Tiles,
        tiles::{INPUTS, TILE},
    },
    isa::Isa,
    kv::Element,
    matmul::{self, Inputs},
    norm::rms_norm,
    project::{Projection, append, split_and_rotate},
};
use crate::{
    draw::Draw,
    memory::{LINE, Line, Lines},
    ops::{
        BiasOn, CacheOn, DecoderOps, HeadNormOn, MatrixOn, NormOn, ProjectedOn, QkvOn, TokensOn,
        WeightOn,
    },
};

/// A tensor with contiguous elements, copied only if they are not.
struct Contiguous(FlexTensor);

impl Contiguous {
    fn new(tensor: FlexTensor) -> Self {
        if tensor.layout().contiguous_offsets().is_some() {
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

    fn bytes(&self) -> &[u8] {
        self.0.as_slice().expect("packed weights are bytes")
    }

    fn dim(&self, i: usize) -> usize {
        self.0.layout().shape()[i]
    }
}

/// A matrix's tensors.
enum Matrix {
    Float(Contiguous),
    Int8 { packed: Contiguous, scales: Contiguous, inputs: usize },
    Int4 { packed: Contiguous, scales: Contiguous, inputs: usize },
}

impl Matrix {
    fn new(matrix: MatrixOn<Flex>) -> Self {
        match matrix {
            MatrixOn::Float(matrix) => Self::Float(Contiguous::new(matrix)),
            MatrixOn::Int8 { packed, scales, inputs } => Self::Int8 {
                packed: Contiguous::new(packed),
                scales: Contiguous::new(scales),
                inputs,
            },
            MatrixOn::Int4 { packed, scales, inputs } => Self::Int4 {
                packed: Contiguous::new(packed),
                scales: Contiguous::new(scales),
                inputs,
            },
        }
    }

    fn outputs(&self) -> usize {
        match self {
            Self::Float(matrix) => matrix.dim(0),
            Self::Int8 { scales, .. } | Self::Int4 { scales, .. } => scales.dim(0),
        }
    }

    fn borrow(&self) -> matmul::Matrix<'_> {
        match self {
            Self::Float(matrix) => matmul::Matrix::Float(matrix.floats()),
            Self::Int8 { packed, scales, inputs } => {
                matmul::Matrix::Int8(Tiles::new(packed.bytes(), *inputs), scales.floats())
            }
            Self::Int4 { packed, scales, inputs } => {
                matmul::Matrix::Int4(Strips::new(packed.bytes(), *inputs), scales.floats())
            }
        }
    }
}

/// A linear map's tensors.
struct Weight {
    matrix: Matrix,
    bias: Option<Contiguous>,
}

impl Weight {
    fn new(weight: WeightOn<Flex>) -> Self {
        let bias = match weight.bias {
            BiasOn::Absent => None,
            BiasOn::Present(bias) => Some(Contiguous::new(bias)),
        };
        Self { matrix: Matrix::new(weight.matrix), bias }
    }

    fn borrow(&self) -> matmul::Weight<'_> {
        matmul::Weight {
            matrix: self.matrix.borrow(),
            n: self.matrix.outputs(),
            bias: self.bias.as_ref().map(Contiguous::floats),
        }
    }
}

/// Returns `norm(x)` and the width of its rows.
fn normed(isa: Isa, x: &[f32], norm: NormOn<Flex>) -> (Vec<f32>, usize) {
    let gain = Contiguous::new(norm.gain);
    let mut y = x.to_vec();
    rms_norm(isa, &mut y, gain.floats(), norm.epsilon);
    (y, gain.dim(0))
}

fn tensor<const D: usize>(data: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(data, Shape::from(shape)))
}

/// Creates a tensor of packed weights.
fn from_lines(lines: Vec<Line>, shape: [usize; 3]) -> FlexTensor {
    // Not a vector of bytes, which would be allocated at any address, and so would its copies.
    let bytes = bytes::Bytes::from_owner(Lines(lines));
    let bytes = Bytes::from_shared(bytes, AllocationProperty::Native);
    FlexTensor::from_data(TensorData::from_bytes(bytes, Shape::from(shape), DType::U8))
}

impl DecoderOps for Flex {
    fn pack(values: IntTensor<Self>) -> IntTensor<Self> {
        let values = Contiguous::new(values);
        let (outputs, inputs) = (values.dim(0), values.dim(1));
        let tiles = int8::tiles::pack(values.0.as_slice().expect("values of 8 bits"), inputs);
        from_lines(tiles, [outputs.div_ceil(OUTPUTS), inputs.div_ceil(INPUTS), TILE])
    }

    fn pack_int4(values: IntTensor<Self>, multipliers: IntTensor<Self>) -> IntTensor<Self> {
        let (values, multipliers) = (Contiguous::new(values), Contiguous::new(multipliers));
        let (outputs, inputs) = (values.dim(0), values.dim(1));
        let values = values.0.as_slice().expect("values of 8 bits");
        let multipliers = multipliers.0.as_slice().expect("multipliers of 8 bits");
        let lines = int4::strips::pack(values, multipliers, inputs);
        let strips = outputs.div_ceil(OUTPUTS);
        from_lines(lines, [strips, strip_bytes(inputs) / LINE, LINE])
    }

    fn embed(ids: IntTensor<Self>, table: MatrixOn<Self>) -> FloatTensor<Self> {
        let _timed = Timed::start();
        let (ids, table) = (Contiguous::new(ids), Matrix::new(table));
        let ids = ids.ints();
        let width = match &table {
            Matrix::Float(matrix) => matrix.dim(1),
            Matrix::Int8 { inputs, .. } | Matrix::Int4 { inputs, .. } => *inputs,
        };
        tensor(matmul::embed(ids, table.borrow(), width), [ids.len(), width])
    }

    fn project_and_append(
        x: FloatTensor<Self>,
        norm: NormOn<Self>,
        weights: QkvOn<Self>,
        rope: FloatTensor<Self>,
        tokens: TokensOn<Self>,
        cache: CacheOn<Self>,
    ) -> ProjectedOn<Self> {
        let _timed = Timed::start();
        let isa = Isa::best();
        let (x, rope) = (Contiguous::new(x), Contiguous::new(rope));
        let (positions, slots) = (Contiguous::new(tokens.positions), Contiguous::new(tokens.slots));
        let CacheOn { mut keys, mut values } = cache;
        let [_, g, d, _] = keys.layout().shape().dims();

        let (y, k) = normed(isa, x.floats(), norm);
        let weight = Weight::new(weights.weight);
        let weight = weight.borrow();
        let mut projected = matmul::linear(&Inputs::new(isa, &y, k, &[weight]), weight);
        let norms = match weights.norm {
            HeadNormOn::Absent => None,
            HeadNormOn::Present { query, key, epsilon } => {
                Some((Contiguous::new(query), Contiguous::new(key), epsilon))
            }
        };
        let norms = norms.as_ref().map(|(q, k, epsilon)| (q.floats(), k.floats(), *epsilon));
        let projection = Projection { width: weight.n, g, d, rope: rope.floats(), norms };
        let queries = split_and_rotate(isa, &mut projected, positions.ints(), projection);
        // In place while this is the only handle; otherwise this copies the whole cache.
        if keys.dtype() == f16::dtype() {
            let (keys, values) = (keys.storage_mut::<f16>(), values.storage_mut::<f16>());
            append(&projected, slots.ints(), projection, keys, values);
        } else {
            let (keys, values) = (keys.storage_mut::<f32>(), values.storage_mut::<f32>());
            append(&projected, slots.ints(), projection, keys, values);
        }
        let heads = weight.n / d - 2 * g;
        ProjectedOn { queries: tensor(queries, [x.dim(0), heads, d]), keys, values }
    }

    fn paged_attention(
        queries: FloatTensor<Self>,
        tokens: TokensOn<Self>,
        cache: CacheOn<Self>,
        window: Option<NonZeroUsize>,
    ) -> FloatTensor<Self> {
        let _timed = Timed::start();
        let out = if cache.keys.dtype() == f16::dtype() {
            attend::<f16>(&queries, tokens, &cache, window)
        } else {
            attend::<f32>(&queries, tokens, &cache, window)
        };
        let [t, h, d] = queries.layout().shape().dims();
        tensor(out, [t, h * d])
    }

    fn linear_add(
        x: FloatTensor<Self>,
        weight: WeightOn<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let _timed = Timed::start();
        let (x, weight) = (Contiguous::new(x), Weight::new(weight));
        let mut residual = Contiguous::new(residual);
        let weight = weight.borrow();
        let inputs = Inputs::new(Isa::best(), x.floats(), x.dim(1), &[weight]);
        if residual.0.layout().start_offset() != 0 {
            residual = Contiguous(residual.0.to_contiguous());
        }
        matmul::linear_add(&inputs, weight, residual.0.storage_mut());
        residual.0
    }

    fn swiglu(
        x: FloatTensor<Self>,
        norm: NormOn<Self>,
        gate: WeightOn<Self>,
        up: WeightOn<Self>,
    ) -> FloatTensor<Self> {
        let _timed = Timed::start();
        let isa = Isa::best();
        let x = Contiguous::new(x);
        let (y, k) = normed(isa, x.floats(), norm);
        let (gate, up) = (Weight::new(gate), Weight::new(up));
        let (gate, up) = (gate.borrow(), up.borrow());
        let out = matmul::swiglu(&Inputs::new(isa, &y, k, &[gate, up]), gate, up);
        tensor(out, [x.dim(0), gate.n])
    }

    fn logits(
        x: FloatTensor<Self>,
        rows: IntTensor<Self>,
        norm: NormOn<Self>,
        head: WeightOn<Self>,
    ) -> FloatTensor<Self> {
        let _timed = Timed::start();
        let isa = Isa::best();
        let (x, rows, head) = (Contiguous::new(x), Contiguous::new(rows), Weight::new(head));
        let head = head.borrow();
        let selected = matmul::embed(rows.ints(), matmul::Matrix::Float(x.floats()), x.dim(1));
        let (y, k) = normed(isa, &selected, norm);
        let out = matmul::linear(&Inputs::new(isa, &y, k, &[head]), head);
        tensor(out, [rows.dim(0), head.n])
    }

    fn draw(logits: FloatTensor<Self>, draws: IntTensor<Self>) -> IntTensor<Self> {
        let (logits, draws) = (Contiguous::new(logits), Contiguous::new(draws));
        let (m, n) = (logits.dim(0), logits.dim(1));
        let draws = draws.ints().as_chunks::<{ Draw::WORDS }>().0;
        let rows = logits.floats().chunks_exact(n.max(1)).zip(draws);
        let drawn: Vec<i32> = rows
            .flat_map(|(row, words)| match row.iter().all(|logit| logit.is_finite()) {
                true => [Draw::from_words(*words).pick(row, 0..n as u32).cast_signed(), 0],
                false => [0, 1],
            })
            .collect();
        FlexTensor::from_data(TensorData::new(drawn, [m, 2]))
    }
}

fn attend<E: Element + burn::tensor::Element>(
    queries: &FlexTensor,
    tokens: TokensOn<Flex>,
    cache: &CacheOn<Flex>,
    window: Option<NonZeroUsize>,
) -> Vec<f32> {
    let (queries, tables) = (Contiguous::new(queries.clone()), Contiguous::new(tokens.tables));
    let (positions, rows) = (Contiguous::new(tokens.positions), Contiguous::new(tokens.rows));
    let [_, g, d, _] = cache.keys.layout().shape().dims();
    let paged = Paged {
        keys: cache.keys.storage::<E>(),
        values: cache.values.storage::<E>(),
        tables: tables.ints(),
        blocks: tables.dim(1),
        positions: positions.ints(),
        rows: rows.ints(),
        g,
        d,
        window,
    };
    paged_attention(Isa::best(), queries.floats(), paged)
}

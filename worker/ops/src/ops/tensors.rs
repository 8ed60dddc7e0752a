//! Inputs and outputs of the operations: over burn tensors, and the same on a backend (`..On`).
//!
//! Letters in shapes are those of [`crate::ops`].

use burn::{
    backend::{
        Backend, Dispatch, ExtensionType,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, Device, Int, Tensor, TensorData, f16},
};

use crate::{
    KV_BLOCK,
    int4::{GROUP, Int4},
    int8::Int8,
    memory,
};

/// Keys and values of one layer.
///
/// Hold one handle only while appending: with a second one, the write in place becomes a copy of
/// the whole cache.
#[derive(Debug, Clone)]
pub struct Cache {
    /// Rotated keys, `[b, g, d, KV_BLOCK]`: the same element of all positions of a block is
    /// contiguous.
    pub keys: Tensor<4>,
    /// Values, `[b, g, KV_BLOCK, d]`.
    pub values: Tensor<4>,
}

/// Element type of a KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheKind {
    /// 4 bytes each.
    F32,
    /// 2 bytes each.
    F16,
}

/// Positions and cache locations of a step's tokens.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// `[t]`: position in the sequence, from 0.
    pub positions: Tensor<1, Int>,
    /// `[t]`: cache slot for keys and values, `block * KV_BLOCK + offset`.
    pub slots: Tensor<1, Int>,
    /// `[t]`: row of `tables` with the token's sequence.
    pub rows: Tensor<1, Int>,
    /// `[s, blocks]`: block table of each sequence; entries past its end are not read.
    pub tables: Tensor<2, Int>,
}

/// Weights of a linear map.
#[derive(Debug, Clone)]
pub struct Weight {
    /// `[n, k]`
    pub matrix: Matrix,
    /// `[n]`, if the model has one.
    pub bias: Option<Tensor<1>>,
}

/// A matrix of `n` outputs by `k` inputs. On a GPU it uses persistent allocations, like a KV cache,
/// apart from temporary tensors: the pages of those are as large as the largest tensor, and each
/// graph retains some.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "burn's handles are large; there are a few a layer")]
pub enum Matrix {
    /// `[n, k]`
    Float(Tensor<2>),
    /// In 8 bits.
    Int8 {
        /// Values, packed by [`super::pack`] for the device.
        packed: Tensor<3, Int>,
        /// `[n]`: the scale of each output.
        scales: Tensor<1>,
        /// `k`
        inputs: usize,
    },
    /// In 4 bits; not on GPUs.
    Int4 {
        /// Steps and multipliers, packed by [`super::pack_int4`].
        packed: Tensor<3, Int>,
        /// `[n]`: the scale of each output.
        scales: Tensor<1>,
        /// `k`
        inputs: usize,
    },
}

/// A root-mean-square norm of rows.
#[derive(Debug, Clone)]
pub struct Norm {
    /// `[k]`
    pub gain: Tensor<1>,
    /// Added to the mean square, so that the root is not zero.
    pub epsilon: f32,
}

/// Root-mean-square norms of each head's `d` elements.
#[derive(Debug, Clone)]
pub struct HeadNorm {
    /// `[d]`: gain of query heads.
    pub query: Tensor<1>,
    /// `[d]`: gain of key heads.
    pub key: Tensor<1>,
    /// Added to the mean square, so that the root is not zero.
    pub epsilon: f32,
}

/// The three projections of attention.
#[derive(Debug, Clone)]
pub struct Qkv {
    /// Queries, keys and values, stacked by rows: `[(h + 2 * g) * d, k]`.
    pub weight: Weight,
    /// Norms between projection and rotation, if the model has them.
    pub norm: Option<HeadNorm>,
}

/// Uploads `values` contiguously to `device`. A GPU would otherwise align each row of a matrix, and
/// would have to move it before every use.
pub fn floats<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    let count = values.len();
    Tensor::<1>::from_data(TensorData::new(values, [count]), (device, DType::F32)).reshape(shape)
}

/// Same for integers.
pub fn ints<const D: usize>(
    values: Vec<i32>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D, Int> {
    let count = values.len();
    let values = TensorData::new(values, [count]);
    Tensor::<1, Int>::from_data(values, (device, DType::I32)).reshape(shape)
}

impl Cache {
    /// Allocates an empty cache of `blocks` for `heads` of `d` elements.
    pub fn new(blocks: usize, heads: usize, d: usize, kind: CacheKind, device: &Device) -> Self {
        let count = blocks * heads * d * KV_BLOCK;
        let empty = || -> Tensor<1> {
            if *device != Device::flex() {
                let zeros = |()| Tensor::zeros([count], (device, kind.dtype()));
                return device.memory_persistent_allocations((), zeros);
            }
            // On the CPU, a vector of zeros takes no memory until it is written. burn's `zeros`
            // writes it at once. So a cache takes the memory of its sequences, not that of its
            // capacity.
            let data = match kind {
                CacheKind::F32 => TensorData::new(memory::zeros::<f32>(count), [count]),
                CacheKind::F16 => TensorData::new(memory::zeros::<f16>(count), [count]),
            };
            Tensor::from_data(data, (device, kind.dtype()))
        };
        Self {
            keys: empty().reshape([blocks, heads, d, KV_BLOCK]),
            values: empty().reshape([blocks, heads, KV_BLOCK, d]),
        }
    }

    pub(super) fn on_backend(self) -> CacheOn<Dispatch> {
        CacheOn { keys: self.keys.into_dispatch(), values: self.values.into_dispatch() }
    }
}

impl CacheKind {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
        }
    }

    /// Size of an element in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

impl Matrix {
    /// Uploads `values [n, inputs]` as read from a file.
    pub fn float(values: Vec<f32>, inputs: usize, device: &Device) -> Self {
        let shape = [values.len() / inputs.max(1), inputs];
        let to_device = |values| floats(values, shape, device);
        Self::Float(device.memory_persistent_allocations(values, to_device))
    }

    /// Packs `values [n, inputs]` for the products of `device`.
    pub fn int8(values: Int8, inputs: usize, device: &Device) -> Self {
        let n = values.scales.len();
        let scales = floats(values.scales, [n], device);
        let bytes = TensorData::new(values.values, [n * inputs]);
        let to_device = |bytes| {
            let values = Tensor::<1, Int>::from_data(bytes, (device, DType::I8));
            super::pack(values.reshape([n, inputs]))
        };
        let packed = device.memory_persistent_allocations(bytes, to_device);
        Self::Int8 { packed, scales, inputs }
    }

    /// Packs `values [n, inputs]` for the products of `device`: in 4 bits on the CPU, the same
    /// integers in 8 bits on a GPU.
    pub fn int4(values: Int4, inputs: usize, device: &Device) -> Self {
        if *device != Device::flex() {
            return Self::int8(values.multiplied, inputs, device);
        }
        let n = values.multiplied.scales.len();
        let scales = floats(values.multiplied.scales, [n], device);
        let bytes = |values, width| {
            let values = TensorData::new(values, [n, width]);
            Tensor::<2, Int>::from_data(values, (device, DType::I8))
        };
        let multipliers = bytes(values.multipliers, inputs.div_ceil(GROUP));
        let packed = super::pack_int4(bytes(values.multiplied.values, inputs), multipliers);
        Self::Int4 { packed, scales, inputs }
    }

    pub(super) fn on_backend(self) -> MatrixOn<Dispatch> {
        match self {
            Self::Float(matrix) => MatrixOn::Float(matrix.into_dispatch()),
            Self::Int8 { packed, scales, inputs } => MatrixOn::Int8 {
                packed: packed.into_dispatch(),
                scales: scales.into_dispatch(),
                inputs,
            },
            Self::Int4 { packed, scales, inputs } => MatrixOn::Int4 {
                packed: packed.into_dispatch(),
                scales: scales.into_dispatch(),
                inputs,
            },
        }
    }
}

impl Weight {
    pub(super) fn on_backend(self) -> WeightOn<Dispatch> {
        let bias = match self.bias {
            None => BiasOn::Absent,
            Some(bias) => BiasOn::Present(bias.into_dispatch()),
        };
        WeightOn { matrix: self.matrix.on_backend(), bias }
    }
}

impl From<Matrix> for Weight {
    /// Creates a map without a bias.
    fn from(matrix: Matrix) -> Self {
        Self { matrix, bias: None }
    }
}

impl Norm {
    pub(super) fn on_backend(self) -> NormOn<Dispatch> {
        NormOn { gain: self.gain.into_dispatch(), epsilon: self.epsilon }
    }
}

impl Qkv {
    pub(super) fn on_backend(self) -> QkvOn<Dispatch> {
        QkvOn {
            weight: self.weight.on_backend(),
            norm: match self.norm {
                None => HeadNormOn::Absent,
                Some(norm) => HeadNormOn::Present {
                    query: norm.query.into_dispatch(),
                    key: norm.key.into_dispatch(),
                    epsilon: norm.epsilon,
                },
            },
        }
    }
}

impl Tokens {
    pub(super) fn on_backend(self) -> TokensOn<Dispatch> {
        TokensOn {
            positions: self.positions.into_dispatch(),
            slots: self.slots.into_dispatch(),
            rows: self.rows.into_dispatch(),
            tables: self.tables.into_dispatch(),
        }
    }
}

/// Keys and values of one layer, on a backend. See [`Cache`].
#[derive(ExtensionType)]
pub struct CacheOn<B: Backend> {
    /// `[b, g, d, KV_BLOCK]`
    pub keys: FloatTensor<B>,
    /// `[b, g, KV_BLOCK, d]`
    pub values: FloatTensor<B>,
}

/// Positions and cache locations of a step's tokens, on a backend. See [`Tokens`].
#[derive(ExtensionType)]
pub struct TokensOn<B: Backend> {
    /// `[t]`
    pub positions: IntTensor<B>,
    /// `[t]`
    pub slots: IntTensor<B>,
    /// `[t]`
    pub rows: IntTensor<B>,
    /// `[s, blocks]`
    pub tables: IntTensor<B>,
}

/// Weights of a linear map, on a backend. See [`Weight`].
#[derive(ExtensionType)]
pub struct WeightOn<B: Backend> {
    /// `[n, k]`
    #[extension_type]
    pub matrix: MatrixOn<B>,
    /// `[n]`
    #[extension_type]
    pub bias: BiasOn<B>,
}

/// A matrix, on a backend. See [`Matrix`].
#[derive(ExtensionType)]
pub enum MatrixOn<B: Backend> {
    /// `[n, k]`
    Float(FloatTensor<B>),
    /// In 8 bits.
    Int8 {
        /// Values, packed by [`super::DecoderOps::pack`].
        packed: IntTensor<B>,
        /// `[n]`
        scales: FloatTensor<B>,
        /// `k`
        inputs: usize,
    },
    /// In 4 bits.
    Int4 {
        /// Steps and multipliers, packed by [`super::DecoderOps::pack_int4`].
        packed: IntTensor<B>,
        /// `[n]`
        scales: FloatTensor<B>,
        /// `k`
        inputs: usize,
    },
}

/// Bias of a linear map, on a backend.
#[derive(ExtensionType)]
pub enum BiasOn<B: Backend> {
    /// No bias.
    Absent,
    /// `[n]`
    Present(FloatTensor<B>),
}

/// A norm of rows, on a backend. See [`Norm`].
#[derive(ExtensionType)]
pub struct NormOn<B: Backend> {
    /// `[k]`
    pub gain: FloatTensor<B>,
    /// Added to the mean square, so that the root is not zero.
    pub epsilon: f32,
}

/// Norms of query and key heads, on a backend. See [`HeadNorm`].
#[derive(ExtensionType)]
pub enum HeadNormOn<B: Backend> {
    /// Heads are not normalised.
    Absent,
    /// Heads are normalised before they are rotated.
    Present {
        /// `[d]`
        query: FloatTensor<B>,
        /// `[d]`
        key: FloatTensor<B>,
        /// Added to the mean square, so that the root is not zero.
        epsilon: f32,
    },
}

/// The three projections of attention, on a backend. See [`Qkv`].
#[derive(ExtensionType)]
pub struct QkvOn<B: Backend> {
    /// `[(h + 2 * g) * d, k]`
    #[extension_type]
    pub weight: WeightOn<B>,
    /// Norms between projection and rotation.
    #[extension_type]
    pub norm: HeadNormOn<B>,
}

/// Queries, and the cache with the new keys and values.
#[derive(ExtensionType)]
pub struct ProjectedOn<B: Backend> {
    /// Rotated queries, `[t, h, d]`.
    pub queries: FloatTensor<B>,
    /// `[b, g, d, KV_BLOCK]`
    pub keys: FloatTensor<B>,
    /// `[b, g, KV_BLOCK, d]`
    pub values: FloatTensor<B>,
}

//! What the operations take and give: over burn tensors, and the same on a backend (`..On`).
//!
//! Shapes are written with the letters of [`crate::ops`].

use burn::{
    backend::{
        Backend, Dispatch, ExtensionType,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{Device, Int, Tensor, TensorData},
};

/// Keys and values of one layer: `[b, g, KV_BLOCK, d]` each.
///
/// Hold one handle only while appending: a second one turns the write in place into a copy of it all.
#[derive(Debug, Clone)]
pub struct Cache {
    /// Rotated keys.
    pub keys: Tensor<4>,
    /// Values.
    pub values: Tensor<4>,
}

/// Where the tokens of a step stand.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// `[t]`: position in the sequence, from 0.
    pub positions: Tensor<1, Int>,
    /// `[t]`: where to write keys and values, `block * KV_BLOCK + offset`.
    pub slots: Tensor<1, Int>,
    /// `[t]`: which row of `tables` is the token's sequence.
    pub rows: Tensor<1, Int>,
    /// `[s, blocks]`: the blocks of each sequence in order; entries past its end are not read.
    pub tables: Tensor<2, Int>,
}

/// A linear map's weights.
#[derive(Debug, Clone)]
pub struct Weight {
    /// `[n, k]`
    pub matrix: Tensor<2>,
    /// `[n]`, where the model has one.
    pub bias: Option<Tensor<1>>,
}

/// Root-mean-square norms over each head's `d` elements.
#[derive(Debug, Clone)]
pub struct HeadNorm {
    /// `[d]`, the gain of query heads.
    pub query: Tensor<1>,
    /// `[d]`, the gain of key heads.
    pub key: Tensor<1>,
    /// Keeps the root away from zero.
    pub epsilon: f32,
}

/// The three projections into attention.
#[derive(Debug, Clone)]
pub struct Qkv {
    /// `[h * d, k]`
    pub query: Weight,
    /// `[g * d, k]`
    pub key: Weight,
    /// `[g * d, k]`
    pub value: Weight,
    /// Between projection and rotation, where the model has it.
    pub norm: Option<HeadNorm>,
}

impl Cache {
    /// An empty cache of shape `[b, g, KV_BLOCK, d]`.
    pub fn new(shape: [usize; 4], device: &Device) -> Self {
        // On the CPU a vector of zeros costs no memory until it is written, which burn's `zeros` does
        // at once: a cache is as large as its sequences, not as its limit.
        let zeros = || vec![0.0f32; shape.iter().product()];
        let tensor = || Tensor::from_data(TensorData::new(zeros(), shape), device);
        Self { keys: tensor(), values: tensor() }
    }

    pub(super) fn on_backend(self) -> CacheOn<Dispatch> {
        CacheOn { keys: self.keys.into_dispatch(), values: self.values.into_dispatch() }
    }
}

impl Weight {
    pub(super) fn on_backend(self) -> WeightOn<Dispatch> {
        let matrix = self.matrix.into_dispatch();
        match self.bias {
            None => WeightOn::Plain(matrix),
            Some(bias) => WeightOn::Biased(matrix, bias.into_dispatch()),
        }
    }
}

impl From<Tensor<2>> for Weight {
    /// A map without a bias.
    fn from(matrix: Tensor<2>) -> Self {
        Self { matrix, bias: None }
    }
}

impl Qkv {
    pub(super) fn on_backend(self) -> QkvOn<Dispatch> {
        QkvOn {
            query: self.query.on_backend(),
            key: self.key.on_backend(),
            value: self.value.on_backend(),
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

/// Keys and values of one layer, on a backend: `[b, g, KV_BLOCK, d]` each.
#[derive(ExtensionType)]
pub struct CacheOn<B: Backend> {
    /// Rotated keys.
    pub keys: FloatTensor<B>,
    /// Values.
    pub values: FloatTensor<B>,
}

/// Where the tokens of a step stand, on a backend. See [`Tokens`].
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

/// A linear map's weights, on a backend. See [`Weight`].
#[derive(ExtensionType)]
pub enum WeightOn<B: Backend> {
    /// `[n, k]`
    Plain(FloatTensor<B>),
    /// `[n, k]` and the bias `[n]`.
    Biased(FloatTensor<B>, FloatTensor<B>),
}

/// The norms of query and key heads, on a backend. See [`HeadNorm`].
#[derive(ExtensionType)]
pub enum HeadNormOn<B: Backend> {
    /// Heads are used as they were projected.
    Absent,
    /// Heads are normalised before they are rotated.
    Present {
        /// `[d]`
        query: FloatTensor<B>,
        /// `[d]`
        key: FloatTensor<B>,
        /// Keeps the root away from zero.
        epsilon: f32,
    },
}

/// The three projections into attention, on a backend. See [`Qkv`].
#[derive(ExtensionType)]
pub struct QkvOn<B: Backend> {
    /// `[h * d, k]`
    #[extension_type]
    pub query: WeightOn<B>,
    /// `[g * d, k]`
    #[extension_type]
    pub key: WeightOn<B>,
    /// `[g * d, k]`
    #[extension_type]
    pub value: WeightOn<B>,
    /// Between projection and rotation.
    #[extension_type]
    pub norm: HeadNormOn<B>,
}

/// Queries, and the cache with the new keys and values in it.
#[derive(ExtensionType)]
pub struct ProjectedOn<B: Backend> {
    /// Rotated queries, `[t, h, d]`.
    pub queries: FloatTensor<B>,
    /// `[b, g, KV_BLOCK, d]`
    pub keys: FloatTensor<B>,
    /// `[b, g, KV_BLOCK, d]`
    pub values: FloatTensor<B>,
}

//! The operations: a trait that every backend implements, and the same over burn tensors.
//!
//! Shapes are written with these letters: `t` tokens of a step (of any mix of sequences), `s` sequences,
//! `k` inputs, `n` outputs, `h` query heads, `g` key-value heads, `d` elements of a head, `b` blocks of the
//! cache, `p` positions.

use burn::{
    backend::{
        Backend, Dispatch, ExtensionType, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{Device, Int, Tensor, TensorData},
};

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

/// The three projections into attention, on a backend.
#[derive(ExtensionType)]
pub struct QkvOn<B: Backend> {
    /// `[h * d, k]`
    pub query: FloatTensor<B>,
    /// `[g * d, k]`
    pub key: FloatTensor<B>,
    /// `[g * d, k]`
    pub value: FloatTensor<B>,
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

/// What a decoder layer is made of. Weights are `[outputs, inputs]`, as model files hold them.
#[backend_extension(Flex)]
pub trait DecoderOps: Backend {
    /// `x / sqrt(mean(x^2) + epsilon) * gain` a row: `[t, k], [k] -> [t, k]`.
    fn rms_norm(x: FloatTensor<Self>, gain: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;

    /// `x * weight^T`: `[t, k], [n, k] -> [t, n]`.
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `residual + x * weight^T`: `[t, k], [n, k], [t, n] -> [t, n]`.
    fn linear_add(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Projects `x [t, k]`, rotates queries and keys by their positions (`rope [p, d]`), and writes keys
    /// and values into the slots of the cache, in place where the caller holds the only handle.
    fn project_and_append(
        x: FloatTensor<Self>,
        #[extension_type] weights: QkvOn<Self>,
        rope: FloatTensor<Self>,
        #[extension_type] tokens: TokensOn<Self>,
        #[extension_type] cache: CacheOn<Self>,
    ) -> ProjectedOn<Self>;

    /// Causal attention of `queries [t, h, d]` over the cached positions of each token's own sequence:
    /// `-> [t, h * d]`.
    fn paged_attention(
        queries: FloatTensor<Self>,
        #[extension_type] tokens: TokensOn<Self>,
        #[extension_type] cache: CacheOn<Self>,
    ) -> FloatTensor<Self>;

    /// `silu(x * gate^T) * (x * up^T)`: `[t, k], [n, k], [n, k] -> [t, n]`.
    fn swiglu(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

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

/// The three projections into attention.
#[derive(Debug, Clone)]
pub struct Qkv {
    /// `[h * d, k]`
    pub query: Tensor<2>,
    /// `[g * d, k]`
    pub key: Tensor<2>,
    /// `[g * d, k]`
    pub value: Tensor<2>,
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

    fn on_backend(self) -> CacheOn<Dispatch> {
        CacheOn { keys: self.keys.into_dispatch(), values: self.values.into_dispatch() }
    }
}

impl Tokens {
    fn on_backend(self) -> TokensOn<Dispatch> {
        TokensOn {
            positions: self.positions.into_dispatch(),
            slots: self.slots.into_dispatch(),
            rows: self.rows.into_dispatch(),
            tables: self.tables.into_dispatch(),
        }
    }
}

/// See [`DecoderOps::rms_norm`].
pub fn rms_norm(x: Tensor<2>, gain: Tensor<1>, epsilon: f32) -> Tensor<2> {
    let y = <Dispatch as DecoderOps>::rms_norm(x.into_dispatch(), gain.into_dispatch(), epsilon);
    Tensor::from_dispatch(y)
}

/// See [`DecoderOps::linear`].
pub fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    let y = <Dispatch as DecoderOps>::linear(x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(y)
}

/// See [`DecoderOps::linear_add`].
pub fn linear_add(x: Tensor<2>, weight: Tensor<2>, residual: Tensor<2>) -> Tensor<2> {
    let y = <Dispatch as DecoderOps>::linear_add(
        x.into_dispatch(),
        weight.into_dispatch(),
        residual.into_dispatch(),
    );
    Tensor::from_dispatch(y)
}

/// See [`DecoderOps::project_and_append`]. Returns rotated queries `[t, h, d]` and the cache.
pub fn project_and_append(
    x: Tensor<2>,
    weights: Qkv,
    rope: Tensor<2>,
    tokens: &Tokens,
    cache: Cache,
) -> (Tensor<3>, Cache) {
    let weights = QkvOn::<Dispatch> {
        query: weights.query.into_dispatch(),
        key: weights.key.into_dispatch(),
        value: weights.value.into_dispatch(),
    };
    let out = <Dispatch as DecoderOps>::project_and_append(
        x.into_dispatch(),
        weights,
        rope.into_dispatch(),
        tokens.clone().on_backend(),
        cache.on_backend(),
    );
    let cache =
        Cache { keys: Tensor::from_dispatch(out.keys), values: Tensor::from_dispatch(out.values) };
    (Tensor::from_dispatch(out.queries), cache)
}

/// See [`DecoderOps::paged_attention`].
pub fn paged_attention(queries: Tensor<3>, tokens: &Tokens, cache: &Cache) -> Tensor<2> {
    let y = <Dispatch as DecoderOps>::paged_attention(
        queries.into_dispatch(),
        tokens.clone().on_backend(),
        cache.clone().on_backend(),
    );
    Tensor::from_dispatch(y)
}

/// See [`DecoderOps::swiglu`].
pub fn swiglu(x: Tensor<2>, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    let y = <Dispatch as DecoderOps>::swiglu(
        x.into_dispatch(),
        gate.into_dispatch(),
        up.into_dispatch(),
    );
    Tensor::from_dispatch(y)
}

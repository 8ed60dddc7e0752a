//! The operations: a trait that every backend implements, and the same over burn tensors.
//!
//! Shapes are written with these letters: `t` tokens of a step (of any mix of sequences), `s` sequences,
//! `k` inputs, `n` outputs, `h` query heads, `g` key-value heads, `d` elements of a head, `b` blocks of the
//! cache, `p` positions.

mod tensors;

use std::num::NonZeroUsize;

use burn::{
    backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor},
    tensor::Tensor,
};
pub use tensors::{
    Cache, CacheOn, HeadNorm, HeadNormOn, ProjectedOn, Qkv, QkvOn, Tokens, TokensOn, Weight,
    WeightOn,
};

/// What a decoder layer is made of. Weights are `[outputs, inputs]`, as model files hold them. Where there
/// is a bias, it is added to the finished sum of products before anything else happens to it.
#[backend_extension(Flex)]
pub trait DecoderOps: Backend {
    /// `x / sqrt(mean(x^2) + epsilon) * gain` a row: `[t, k], [k] -> [t, k]`.
    fn rms_norm(x: FloatTensor<Self>, gain: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;

    /// `x * weight^T`: `[t, k], [n, k] -> [t, n]`.
    fn linear(x: FloatTensor<Self>, #[extension_type] weight: WeightOn<Self>) -> FloatTensor<Self>;

    /// `residual + x * weight^T`: `[t, k], [n, k], [t, n] -> [t, n]`.
    fn linear_add(
        x: FloatTensor<Self>,
        #[extension_type] weight: WeightOn<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Projects `x [t, k]`, normalises query and key heads where the model does, rotates them by their
    /// positions (`rope [p, d]`), and writes keys and values into the slots of the cache, in place where
    /// the caller holds the only handle.
    fn project_and_append(
        x: FloatTensor<Self>,
        #[extension_type] weights: QkvOn<Self>,
        rope: FloatTensor<Self>,
        #[extension_type] tokens: TokensOn<Self>,
        #[extension_type] cache: CacheOn<Self>,
    ) -> ProjectedOn<Self>;

    /// Causal attention of `queries [t, h, d]` over the cached positions of each token's own sequence:
    /// `-> [t, h * d]`. With a `window` a token sees that many positions, its own the last of them;
    /// nothing before them is read.
    fn paged_attention(
        queries: FloatTensor<Self>,
        #[extension_type] tokens: TokensOn<Self>,
        #[extension_type] cache: CacheOn<Self>,
        window: Option<NonZeroUsize>,
    ) -> FloatTensor<Self>;

    /// `silu(x * gate^T) * (x * up^T)`: `[t, k], [n, k], [n, k] -> [t, n]`.
    fn swiglu(
        x: FloatTensor<Self>,
        #[extension_type] gate: WeightOn<Self>,
        #[extension_type] up: WeightOn<Self>,
    ) -> FloatTensor<Self>;
}

/// See [`DecoderOps::rms_norm`].
pub fn rms_norm(x: Tensor<2>, gain: Tensor<1>, epsilon: f32) -> Tensor<2> {
    let y = <Dispatch as DecoderOps>::rms_norm(x.into_dispatch(), gain.into_dispatch(), epsilon);
    Tensor::from_dispatch(y)
}

/// See [`DecoderOps::linear`].
pub fn linear(x: Tensor<2>, weight: Weight) -> Tensor<2> {
    let y = <Dispatch as DecoderOps>::linear(x.into_dispatch(), weight.on_backend());
    Tensor::from_dispatch(y)
}

/// See [`DecoderOps::linear_add`].
pub fn linear_add(x: Tensor<2>, weight: Weight, residual: Tensor<2>) -> Tensor<2> {
    let y = <Dispatch as DecoderOps>::linear_add(
        x.into_dispatch(),
        weight.on_backend(),
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
    let out = <Dispatch as DecoderOps>::project_and_append(
        x.into_dispatch(),
        weights.on_backend(),
        rope.into_dispatch(),
        tokens.clone().on_backend(),
        cache.on_backend(),
    );
    let cache =
        Cache { keys: Tensor::from_dispatch(out.keys), values: Tensor::from_dispatch(out.values) };
    (Tensor::from_dispatch(out.queries), cache)
}

/// See [`DecoderOps::paged_attention`].
pub fn paged_attention(
    queries: Tensor<3>,
    tokens: &Tokens,
    cache: &Cache,
    window: Option<NonZeroUsize>,
) -> Tensor<2> {
    let y = <Dispatch as DecoderOps>::paged_attention(
        queries.into_dispatch(),
        tokens.clone().on_backend(),
        cache.clone().on_backend(),
        window,
    );
    Tensor::from_dispatch(y)
}

/// See [`DecoderOps::swiglu`].
pub fn swiglu(x: Tensor<2>, gate: Weight, up: Weight) -> Tensor<2> {
    let y = <Dispatch as DecoderOps>::swiglu(x.into_dispatch(), gate.on_backend(), up.on_backend());
    Tensor::from_dispatch(y)
}

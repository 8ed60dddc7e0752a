//! The operations: a trait that every backend implements, and the same over burn tensors.
//!
//! Letters in shapes: `t` tokens of a step (of any mix of sequences), `s` sequences, `k` inputs,
//! `n` outputs, `h` query heads, `g` key-value heads, `d` elements of a head, `b` blocks of the
//! cache, `p` positions.

#[cfg(feature = "cube")]
pub mod in_place;
mod lists;
mod tensors;

use std::num::NonZeroUsize;

use burn::{
    backend::{
        Backend, Dispatch, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{Int, Tensor},
};
pub use lists::Lists;
pub use tensors::{
    BiasOn, Cache, CacheKind, CacheOn, HeadNorm, HeadNormOn, Matrix, MatrixOn, Norm, NormOn,
    ProjectedOn, Qkv, QkvOn, Tokens, TokensOn, Weight, WeightOn, floats, ints,
};

/// Operations of a decoder; a layer consists of five of them. Weights are `[outputs, inputs]`, as
/// in model files. A bias is added to the finished sum of products before any further step. A norm
/// is `x / sqrt(mean(x^2) + epsilon) * gain` per row. A matrix in 8 bits needs its inputs in 8 bits
/// too: each operation quantises them, token by token, after the norm.
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait DecoderOps: Backend {
    /// Packs `values [n, k]`, each from -127 to 127 in 8 bits, into the layout of this backend's
    /// products.
    fn pack(values: IntTensor<Self>) -> IntTensor<Self>;

    /// Packs `values [n, k]`, steps times multipliers in 8 bits, and `multipliers [n,
    /// k.div_ceil(GROUP)]` in 8 bits, into the layout of this backend's products in 4 bits. See
    /// [`crate::int4`]. Not called on GPUs, which pack the values in 8 bits.
    fn pack_int4(values: IntTensor<Self>, multipliers: IntTensor<Self>) -> IntTensor<Self>;

    /// Returns the rows of `table [n, k]` with indices `ids [t]`: `-> [t, k]`.
    fn embed(ids: IntTensor<Self>, #[extension_type] table: MatrixOn<Self>) -> FloatTensor<Self>;

    /// Normalises and projects `x [t, k]`, normalises query and key heads if the model does,
    /// rotates them by their positions (`rope [p, d]`), and writes keys and values into their cache
    /// slots, in place if the caller holds the only handle.
    fn project_and_append(
        x: FloatTensor<Self>,
        #[extension_type] norm: NormOn<Self>,
        #[extension_type] weights: QkvOn<Self>,
        rope: FloatTensor<Self>,
        #[extension_type] tokens: TokensOn<Self>,
        #[extension_type] cache: CacheOn<Self>,
    ) -> ProjectedOn<Self>;

    /// Causal attention of `queries [t, h, d]` over the cached positions of each token's own
    /// sequence: `-> [t, h * d]`. With a `window`, a token attends to that many positions,
    /// including its own, and earlier ones are not read.
    fn paged_attention(
        queries: FloatTensor<Self>,
        #[extension_type] tokens: TokensOn<Self>,
        #[extension_type] cache: CacheOn<Self>,
        window: Option<NonZeroUsize>,
    ) -> FloatTensor<Self>;

    /// `residual + x * weight^T`: `[t, k], [n, k], [t, n] -> [t, n]`.
    fn linear_add(
        x: FloatTensor<Self>,
        #[extension_type] weight: WeightOn<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// With `y = norm(x)`: `silu(y * gate^T) * (y * up^T)`: `[t, k], [n, k], [n, k] -> [t, n]`.
    fn swiglu(
        x: FloatTensor<Self>,
        #[extension_type] norm: NormOn<Self>,
        #[extension_type] gate: WeightOn<Self>,
        #[extension_type] up: WeightOn<Self>,
    ) -> FloatTensor<Self>;

    /// `norm(x) * head^T` of the rows of `x [t, k]` with indices `rows`: `rows [m], [n, k] -> [m,
    /// n]`.
    fn logits(
        x: FloatTensor<Self>,
        rows: IntTensor<Self>,
        #[extension_type] norm: NormOn<Self>,
        #[extension_type] head: WeightOn<Self>,
    ) -> FloatTensor<Self>;

    /// Draws a token from each row of `logits [m, n]`, by [`crate::draw::Draw::words`] in `draws
    /// [m, 3]`: `-> [m, 2]`. The first number is the token. The second is 0, or 1 if the caller
    /// must draw it: because a logit is not finite, or because a device that computes in f32 cannot
    /// distinguish the best two.
    fn draw(logits: FloatTensor<Self>, draws: IntTensor<Self>) -> IntTensor<Self>;
}

/// See [`DecoderOps::pack`].
pub fn pack(values: Tensor<2, Int>) -> Tensor<3, Int> {
    Tensor::from_dispatch(<Dispatch as DecoderOps>::pack(values.into_dispatch()))
}

/// See [`DecoderOps::pack_int4`].
pub fn pack_int4(values: Tensor<2, Int>, multipliers: Tensor<2, Int>) -> Tensor<3, Int> {
    let (values, multipliers) = (values.into_dispatch(), multipliers.into_dispatch());
    Tensor::from_dispatch(<Dispatch as DecoderOps>::pack_int4(values, multipliers))
}

/// See [`DecoderOps::embed`].
pub fn embed(ids: Tensor<1, Int>, table: Matrix) -> Tensor<2> {
    let y = <Dispatch as DecoderOps>::embed(ids.into_dispatch(), table.on_backend());
    Tensor::from_dispatch(y)
}

/// See [`DecoderOps::project_and_append`]. Returns rotated queries `[t, h, d]` and the cache.
pub fn project_and_append(
    x: Tensor<2>,
    norm: Norm,
    weights: Qkv,
    rope: Tensor<2>,
    tokens: &Tokens,
    cache: Cache,
) -> (Tensor<3>, Cache) {
    let out = <Dispatch as DecoderOps>::project_and_append(
        x.into_dispatch(),
        norm.on_backend(),
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

/// See [`DecoderOps::linear_add`].
pub fn linear_add(x: Tensor<2>, weight: Weight, residual: Tensor<2>) -> Tensor<2> {
    let y = <Dispatch as DecoderOps>::linear_add(
        x.into_dispatch(),
        weight.on_backend(),
        residual.into_dispatch(),
    );
    Tensor::from_dispatch(y)
}

/// See [`DecoderOps::swiglu`].
pub fn swiglu(x: Tensor<2>, norm: Norm, gate: Weight, up: Weight) -> Tensor<2> {
    let y = <Dispatch as DecoderOps>::swiglu(
        x.into_dispatch(),
        norm.on_backend(),
        gate.on_backend(),
        up.on_backend(),
    );
    Tensor::from_dispatch(y)
}

/// See [`DecoderOps::logits`].
pub fn logits(x: Tensor<2>, rows: Tensor<1, Int>, norm: Norm, head: Weight) -> Tensor<2> {
    let y = <Dispatch as DecoderOps>::logits(
        x.into_dispatch(),
        rows.into_dispatch(),
        norm.on_backend(),
        head.on_backend(),
    );
    Tensor::from_dispatch(y)
}

/// See [`DecoderOps::draw`].
pub fn draw(logits: Tensor<2>, draws: Tensor<2, Int>) -> Tensor<2, Int> {
    let y = <Dispatch as DecoderOps>::draw(logits.into_dispatch(), draws.into_dispatch());
    Tensor::from_dispatch(y)
}

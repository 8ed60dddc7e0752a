//! GPU kernels of the operations in CubeCL: one source for CUDA, Vulkan and Metal.
//!
//! As on the CPU, a token's numbers depend on the token alone: products in 8 bits are exact sums of
//! integers, the order of every f32 sum depends only on its length, and attention splits the
//! context at absolute positions. The order differs from the CPU's, so workers on different kinds
//! of device never resume each other's responses: see [`crate::NUMERICS_VERSION`].
//!
//! [`backend`] is the glue to burn's tensors. Each of the other files has kernels and the functions
//! that launch them.

mod attention;
mod backend;
mod buffer;
mod draw;
mod embed;
mod float;
mod int8;
mod math;
mod pack;
mod project;
mod reduce;
mod rows;
pub(crate) mod self_test;
#[cfg(feature = "cuda-source")]
pub mod source;

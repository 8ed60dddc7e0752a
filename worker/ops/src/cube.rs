//! The operations as GPU kernels, in CubeCL: one source for CUDA, Vulkan, Metal.
//!
//! A token's numbers depend on the token alone here too: products in 8 bits are exact sums of integers, every
//! f32 sum has an order that depends on its length alone, and attention splits the context at absolute positions.
//! The order differs from the CPU's, so a worker on another kind of device never continues an answer: see
//! [`crate::NUMERICS_VERSION`].
//!
//! [`backend`] is the glue to burn's tensors; the other files are kernels, each with the function that launches it.

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

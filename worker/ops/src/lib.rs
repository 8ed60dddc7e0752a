//! The operations of a decoder, as a burn backend extension.
//!
//! [`ops`] defines them: a trait that every backend implements, and the same over burn tensors.
//! [`mod@reference`] defines their results in plain burn operations. [`cpu`] is the implementation
//! for burn's CPU backend. This crate is the only one with `unsafe` code.
//!
//! **Exactness.** Every operation returns the same bits for a row whatever the other rows of the
//! batch, however the work is split over threads, and whichever instruction set the CPU has. Sums
//! have sixteen lanes with fused multiply-adds and end in one fixed tree ([`cpu::lanes`]).
//! Attention uses tiles at absolute positions ([`cpu::attention`]). Products in 8 and in 4 bits are
//! sums of integers, exact in any order ([`cpu::int8`], [`cpu::int4`]). Transcendental functions are our own ([`math`]).
//!
//! ```
//! use burn::tensor::Tensor;
//! use stoker_ops::{Device, device::DeviceChoice, ops::{self, Matrix, Weight}, reference};
//!
//! let device = Device::open(DeviceChoice::Cpu, |_| ())?.tensors;
//! let x = Tensor::<2>::from_data([[1.0, 2.0], [3.0, 4.0]], &device);
//! let matrix = Tensor::<2>::from_data([[1.0, 0.0], [0.0, 2.0]], &device);
//! let weight = Weight { matrix: Matrix::Float(matrix), bias: None };
//! let residual = Tensor::<2>::ones([2, 2], &device);
//! let y = ops::linear_add(x.clone(), weight.clone(), residual.clone());
//! assert_eq!(y.into_data().to_vec::<f32>()?, [2.0, 5.0, 4.0, 9.0]);
//! let expected = reference::linear_add(x, weight, residual);
//! assert_eq!(expected.into_data().to_vec::<f32>()?, [2.0, 5.0, 4.0, 9.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod check;
pub mod cpu;
#[cfg(feature = "cube")]
pub mod cube;
pub mod device;
pub mod draw;
pub mod fallback;
pub mod graph;
pub mod int4;
pub mod int8;
mod launches;
pub mod math;
pub mod memory;
pub mod noise;
pub mod ops;
pub mod reference;
pub mod rope;
pub mod timeline;

pub use device::Device;
pub use launches::launches;
pub use ops::{Cache, Tokens};

/// Number of tokens in a block of the KV cache, which is also the tile of attention. Part of the
/// numerics: another value changes bits.
pub const KV_BLOCK: usize = 16;

/// Incremented whenever the same weights and the same request may produce other bits than before.
/// Part of the digest, which determines the workers that may resume each other's responses.
pub const NUMERICS_VERSION: u32 = 2;

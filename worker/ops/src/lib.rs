//! The operations a decoder is made of, as a burn backend extension.
//!
//! [`ops`] says what there is: a trait that every backend implements, and the same over burn tensors.
//! [`mod@reference`] says what each must compute, in plain burn operations. [`cpu`] is the implementation
//! for burn's CPU backend. This crate is the only one with `unsafe` code.
//!
//! **Exactness.** Every operation gives a row the same bits whatever other rows ride along, however the
//! work is split over threads, and whichever instruction set the CPU has: sums run over sixteen lanes
//! with fused multiply-adds and end in one fixed tree ([`cpu::lanes`]), attention walks tiles at absolute
//! positions ([`cpu::attention`]), products in 8 bits are sums of integers, exact in any order ([`cpu::int8`]),
//! and transcendental functions are our own ([`math`]).
#![allow(unsafe_code, reason = "the one crate that may; every block says why it is sound")]

pub mod check;
pub mod cpu;
#[cfg(feature = "cube")]
pub mod cube;
pub mod device;
pub mod draw;
pub mod fallback;
pub mod graph;
mod launches;
pub mod math;
pub mod noise;
pub mod ops;
pub mod reference;
pub mod rope;
pub mod timeline;

pub use device::Device;
pub use launches::launches;
pub use ops::{Cache, Tokens};

/// Tokens in a block of the KV cache, which is also the tile that attention works in. Part of the
/// numerics: another value gives other bits.
pub const KV_BLOCK: usize = 16;

/// Goes up whenever the same weights and the same request may give other bits than before. It is part
/// of the digest that says which workers may continue each other's answers.
pub const NUMERICS_VERSION: u32 = 2;

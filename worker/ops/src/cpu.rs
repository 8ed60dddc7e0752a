//! The operations on burn's CPU backend: slices in, slices out, and the glue to its tensors.
//!
//! [`product`] and [`attention`] are where the time goes; [`int8`] is the integer part of the first. All of them
//! run on the threads of [`pool`], with the instructions that [`isa`] finds.

pub mod attention;
pub mod clock;
mod flex;
pub mod int8;
pub mod isa;
pub mod kv;
pub mod lanes;
pub mod memory;
pub mod norm;
pub mod pool;
pub mod product;
pub mod project;
pub mod rates;
pub mod rope;
pub mod simd;

pub use clock::kernel_time;
pub use memory::read_bandwidth;
pub use pool::{set_threads, threads};

/// Work below this many multiply-adds stays on one thread: to wake another may take longer.
pub(crate) const WORTH_SHARING: usize = 1 << 18;

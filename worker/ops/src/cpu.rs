//! Operations on burn's CPU backend: functions over slices, and the glue to burn's tensors.
//!
//! [`matmul`] and [`attention`] take most of the time; [`int8`] and [`int4`] are the integer part of the
//! former.
//! All run on the threads of [`pool`], with the instruction set that [`isa`] detects.

pub mod attention;
mod bandwidth;
pub mod clock;
mod flex;
pub mod int4;
pub mod int8;
pub mod isa;
pub mod kv;
pub mod lanes;
pub mod matmul;
pub mod norm;
mod peak;
pub mod pool;
#[cfg(target_arch = "x86_64")]
mod prefetch;
pub mod project;
pub mod rates;
pub mod rope;
pub mod simd;
#[cfg(target_arch = "x86_64")]
mod tile_unit;

pub use bandwidth::read_bandwidth;
pub use clock::kernel_time;
pub use pool::{set_threads, threads};

/// Number of multiply-adds below which work stays on one thread, since waking another may take
/// longer.
pub(crate) const PARALLEL_THRESHOLD: usize = 1 << 18;

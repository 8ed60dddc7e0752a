//! Models with random weights: real files of a real shape, for which nothing need be downloaded.
//!
//! Both formats hold the same numbers: bf16 in SafeTensors, and those rounded to Q8_0 in GGUF. They are
//! written once into a folder, a piece of a tensor at a time, and stay there.

pub mod cache;
mod encoding;
mod gguf;
mod safetensors;
mod shape;
mod tensors;
mod vocabulary;

pub use cache::{CacheError, prepare};
pub use shape::Shape;

/// A bijection of 64 bits in which every input bit changes about half of the output.
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

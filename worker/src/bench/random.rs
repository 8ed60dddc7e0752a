//! Models with random weights: real files of a real shape, for which nothing need be downloaded.
//!
//! Both formats hold the same numbers: bf16 in SafeTensors, and those rounded to Q8_0 in GGUF. They are
//! written once into a folder, a piece of a tensor at a time, and stay there.

pub mod cache;
mod encoding;
mod gguf;
pub(super) mod safetensors;
mod shape;
mod tensors;
mod vocabulary;

pub use cache::{CacheError, prepare};
pub use shape::Shape;

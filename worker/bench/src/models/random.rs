//! Models with random weights: real files of a real shape, without a download.
//!
//! Both formats hold the same values: bf16 in SafeTensors, and those rounded to Q8_0 in GGUF. The
//! files are written once into the cache folder, one chunk of a tensor at a time.

pub mod cache;
mod encoding;
mod gguf;
pub(super) mod safetensors;
mod shape;
mod tensors;
mod vocabulary;

pub use cache::prepare;
pub use shape::Shape;

//! The training pipeline of the bundled model without its corpus: tokenizer, training and
//! evaluation.

pub mod adamw;
pub mod batches;
pub mod bpe;
pub mod checkpoint;
pub mod config;
pub mod error;
pub mod evaluate;
pub mod generate;
pub mod llama;
pub mod ngram;
pub mod pipeline;
pub mod recipe;
pub mod trainer;
pub mod weights;

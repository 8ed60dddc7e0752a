//! Everything that makes the bundled model but its corpus: tokenizer, training and evaluation.

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
pub mod recipe;
pub mod trainer;
pub mod weights;
pub mod workshop;

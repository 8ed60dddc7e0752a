//! The engine: model, weights, KV cache, scheduler, sampling. No gRPC, no tokio.

pub mod tokenizer;
pub mod weights;

//! A decoder of plain burn operations: the baseline cost of a step without optimised kernels.
//!
//! Its weights and its cache are random and its outputs are meaningless: only the duration counts.
//! The operations are those of [`stoker_ops::reference`], which define what the optimised ones must
//! compute.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use rayon::prelude::*;
use stoker_ops::{
    Cache, KV_BLOCK, Tokens,
    ops::{Matrix, Norm, Qkv, Weight},
    reference, rope,
};

use crate::{kv_cache::blocks_for, sampling::mix64, weights::ModelConfig};

/// Number of elements that a thread draws at a time.
const CHUNK: usize = 1 << 14;

/// A decoder without biases, windows or head norms, in the middle of one sequence.
pub struct NaiveDecoder {
    /// `[vocab, hidden]`
    embedding: Tensor<2>,
    layers: Vec<Layer>,
    norm: Norm,
    /// `[vocab, hidden]`
    head: Tensor<2>,
    /// `[context, head_dim]`
    rope: Tensor<2>,
    /// One per layer.
    caches: Vec<Cache>,
    tokens: Tokens,
    device: Device,
}

/// The weights of one layer, `[outputs, inputs]` each.
struct Layer {
    qkv: Tensor<2>,
    output: Tensor<2>,
    gate: Tensor<2>,
    up: Tensor<2>,
    down: Tensor<2>,
}

impl NaiveDecoder {
    /// Creates a decoder of the shape of `config` whose sequence has `context` positions, at least
    /// one.
    pub fn random(config: &ModelConfig, context: usize, device: &Device) -> Self {
        let mut seed = 0;
        let mut matrix = |outputs: usize, inputs: usize| -> Tensor<2> {
            seed += 1;
            random([outputs, inputs], seed, 1.0 / (inputs as f32).sqrt(), device)
        };
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.q_size(), config.kv_size());
        let embedding = matrix(config.vocab_size, hidden);
        let layers = (0..config.num_layers)
            .map(|_| Layer {
                qkv: matrix(q + 2 * kv, hidden),
                output: matrix(hidden, q),
                gate: matrix(inner, hidden),
                up: matrix(inner, hidden),
                down: matrix(hidden, inner),
            })
            .collect();
        let head = matrix(config.vocab_size, hidden);
        let blocks = blocks_for(context);
        let (heads, d) = (config.num_kv_heads, config.head_dim);
        let cache = |layer| Cache {
            keys: random([blocks, heads, d, KV_BLOCK], 1_000_000 + 2 * layer, 1.0, device),
            values: random([blocks, heads, KV_BLOCK, d], 1_000_001 + 2 * layer, 1.0, device),
        };
        let frequencies = rope::frequencies(config.head_dim, config.rope_theta);
        let angles =
            TensorData::new(rope::table(context, &frequencies), [context, config.head_dim]);
        Self {
            embedding,
            layers,
            norm: Norm {
                gain: Tensor::ones([hidden], device),
                epsilon: config.rms_norm_eps as f32,
            },
            head,
            rope: Tensor::from_data(angles, device),
            caches: (0..config.num_layers as u64).map(cache).collect(),
            tokens: last_of(context, device),
            device: device.clone(),
        }
    }

    /// Computes the sequence's last token again and returns its logits `[vocab]`.
    pub fn step(&mut self) -> Vec<f32> {
        let id = ints(vec![1], [1], &self.device);
        let mut x = self.embedding.clone().select(0, id);
        let caches = std::mem::take(&mut self.caches);
        for (layer, cache) in self.layers.iter().zip(caches) {
            let (y, cache) = self.layer(x, layer, cache);
            x = y;
            self.caches.push(cache);
        }
        let (last, head) = (ints(vec![0], [1], &self.device), weight(&self.head));
        let logits = reference::logits(x, last, self.norm.clone(), head);
        logits.into_data().iter::<f32>().collect()
    }

    fn layer(&self, x: Tensor<2>, layer: &Layer, cache: Cache) -> (Tensor<2>, Cache) {
        let norm = || self.norm.clone();
        let qkv = Qkv { weight: weight(&layer.qkv), norm: None };
        let (rope, tokens) = (self.rope.clone(), &self.tokens);
        let (queries, cache) =
            reference::project_and_append(x.clone(), norm(), qkv, rope, tokens, cache);
        let attended = reference::paged_attention(queries, tokens, &cache, None);
        let x = reference::linear_add(attended, weight(&layer.output), x);
        let gated = reference::swiglu(x.clone(), norm(), weight(&layer.gate), weight(&layer.up));
        (reference::linear_add(gated, weight(&layer.down), x), cache)
    }
}

fn weight(matrix: &Tensor<2>) -> Weight {
    Weight::from(Matrix::Float(matrix.clone()))
}

/// The batch inputs of the last token of a sequence of `context` positions, whose blocks are in
/// order.
fn last_of(context: usize, device: &Device) -> Tokens {
    let blocks = blocks_for(context);
    let last = context as i32 - 1;
    Tokens {
        positions: ints(vec![last], [1], device),
        slots: ints(vec![last], [1], device),
        rows: ints(vec![0], [1], device),
        tables: ints((0..blocks as i32).collect(), [1, blocks], device),
    }
}

fn ints<const D: usize>(values: Vec<i32>, shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::I32))
}

/// A tensor of random values between `-spread` and `spread`.
fn random<const D: usize>(shape: [usize; D], seed: u64, spread: f32, device: &Device) -> Tensor<D> {
    let mut values = vec![0.0f32; shape.iter().product()];
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        let first = (seed << 40) + (chunk * CHUNK) as u64;
        for (value, index) in values.iter_mut().zip(first..) {
            let bits = mix64(index) >> 40;
            *value = (bits as f32 / (1u32 << 23) as f32 - 1.0) * spread;
        }
    });
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes;

    #[test]
    fn a_step_gives_the_same_finite_logits_each_time() {
        let config = ModelConfig {
            hidden_size: 32,
            intermediate_size: 48,
            num_layers: 2,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 8,
            vocab_size: 10,
            context_length: 64,
            ..shapes::tiny()
        };
        let mut decoder = NaiveDecoder::random(&config, 37, &Device::flex());
        let logits = decoder.step();
        assert_eq!(logits.len(), 10);
        assert!(logits.iter().all(|logit| logit.is_finite()));
        assert!(logits.iter().any(|logit| *logit != logits[0]), "{logits:?}");
        assert_eq!(decoder.step(), logits);
    }
}

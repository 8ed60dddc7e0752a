//! The whole network: embedding, layers, head.

use burn::tensor::{Int, Tensor};
use stoker_ops::{
    Cache, Tokens,
    ops::{self, Matrix, Norm, Weight},
    rope,
};

use super::{Reader, layer::Layer, norm, progress::ProgressCounter, rope::frequencies};
use crate::weights::{EMBEDDING, HEAD, ModelConfig, WeightsError};

/// A decoder of the Llama architecture. Llama, Mistral and Qwen differ only in its constants.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// `[vocab, hidden]`
    pub embedding: Matrix,
    /// Layers, in order.
    pub layers: Vec<Layer>,
    /// Norm before the head.
    pub norm: Norm,
    /// `[vocab, hidden]`; the embedding itself where the model ties the two.
    pub head: Weight,
    /// `[positions, head_dim]`: see [`rope::table`].
    pub rope: Tensor<2>,
    /// Incremented after every layer.
    pub progress: ProgressCounter,
}

impl Decoder {
    pub(super) fn read(config: &ModelConfig, reader: &mut Reader) -> Result<Self, WeightsError> {
        let embedding = reader.table(EMBEDDING, config.hidden_size)?;
        let layers = (0..config.num_layers)
            .map(|index| Layer::read(config, reader, index))
            .collect::<Result<_, _>>()?;
        let norm = norm::read(config, reader, "model.norm")?;
        let head = if config.tie_embeddings {
            embedding.clone().into()
        } else {
            reader.table(HEAD, config.hidden_size)?.into()
        };
        let angles = rope::table(config.context_length, &frequencies(config));
        let rope = ops::floats(angles, [config.context_length, config.head_dim], reader.device);
        Ok(Self { embedding, layers, norm, head, rope, progress: ProgressCounter::default() })
    }

    /// Runs the tokens of one step through all layers.
    ///
    /// - `ids [tokens]`: token ids; `tokens` has their positions and cache slots.
    /// - `caches`: one for each layer; returned with the new keys and values.
    /// - `logits_indices [samples]`: indices of the tokens whose logits are computed.
    /// - output: logits, `[samples, vocab]`.
    pub fn forward(
        &self,
        ids: Tensor<1, Int>,
        tokens: &Tokens,
        caches: Vec<Cache>,
        logits_indices: Tensor<1, Int>,
    ) -> (Tensor<2>, Vec<Cache>) {
        assert_eq!(caches.len(), self.layers.len(), "every layer has a cache");
        let mut x = ops::embed(ids, self.embedding.clone());
        let mut updated = Vec::with_capacity(caches.len());
        for (layer, cache) in self.layers.iter().zip(caches) {
            let (y, cache) = layer.forward(x, self.rope.clone(), tokens, cache);
            x = y;
            updated.push(cache);
            self.progress.increment();
        }
        (ops::logits(x, logits_indices, self.norm.clone(), self.head.clone()), updated)
    }
}

//! The whole network: embedding, layers, head.

use burn::{
    module::{Module, Param},
    tensor::{Int, Tensor, TensorData},
};
use stoker_ops::{Cache, Tokens, rope};

use super::{Reader, layer::Layer, linear::Linear, norm::RmsNorm, rope::frequencies};
use crate::weights::{ModelConfig, WeightsError};

/// A decoder of the Llama kind: Llama, Mistral and Qwen differ in its constants alone.
#[derive(Module, Debug)]
pub struct Decoder {
    /// `[vocab, hidden]`
    pub embedding: Param<Tensor<2>>,
    /// In order.
    pub layers: Vec<Layer>,
    /// Before the head.
    pub norm: RmsNorm,
    /// `[vocab, hidden]`; the embedding itself where the model ties the two.
    pub head: Linear,
    /// `[positions, head_dim]`: see [`rope::table`].
    pub rope: Param<Tensor<2>>,
}

impl Decoder {
    pub(super) fn read(config: &ModelConfig, reader: &mut Reader) -> Result<Self, WeightsError> {
        let table = [config.vocab_size, config.hidden_size];
        let embedding = Param::from_tensor(reader.tensor("model.embed_tokens.weight", table)?);
        let layers = (0..config.num_layers)
            .map(|index| Layer::read(config, reader, index))
            .collect::<Result<_, _>>()?;
        let norm = RmsNorm::read(config, reader, "model.norm", config.hidden_size)?;
        let head = if config.tie_embeddings {
            Linear { weight: embedding.clone(), bias: None }
        } else {
            Linear::read(reader, "lm_head", table, false)?
        };
        let angles = rope::table(config.context_length, &frequencies(config));
        let angles = TensorData::new(angles, [config.context_length, config.head_dim]);
        let rope = Param::from_tensor(Tensor::from_data(angles, reader.device));
        Ok(Self { embedding, layers, norm, head, rope })
    }

    /// Runs the tokens of one step through all layers.
    ///
    /// - `ids [tokens]`: the token ids; `tokens` says where they stand.
    /// - `caches`: one a layer, given back with the new keys and values in them.
    /// - `rows [samples]`: the tokens whose logits are wanted.
    /// - output: logits, `[samples, vocab]`.
    pub fn forward(
        &self,
        ids: Tensor<1, Int>,
        tokens: &Tokens,
        caches: Vec<Cache>,
        rows: Tensor<1, Int>,
    ) -> (Tensor<2>, Vec<Cache>) {
        let mut x = self.embedding.val().select(0, ids);
        let mut updated = Vec::with_capacity(caches.len());
        for (layer, cache) in self.layers.iter().zip(caches) {
            let (y, cache) = layer.forward(x, self.rope.val(), tokens, cache);
            x = y;
            updated.push(cache);
        }
        let x = self.norm.forward(x.select(0, rows));
        (self.head.forward(x), updated)
    }
}

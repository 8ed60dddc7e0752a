//! The gated feed-forward layer.

use burn::tensor::Tensor;
use stoker_ops::ops::{self, Norm};

use super::{Reader, linear::Linear, norm};
use crate::weights::{ModelConfig, WeightsError};

/// `y = down(silu(gate(x)) * up(x))` over normalised `x`.
#[derive(Debug, Clone)]
pub struct Mlp {
    /// Norm over the layer's input.
    pub norm: Norm,
    /// `[intermediate, hidden]`
    pub gate: Linear,
    /// `[intermediate, hidden]`
    pub up: Linear,
    /// `[hidden, intermediate]`
    pub down: Linear,
}

impl Mlp {
    pub(super) fn read(
        config: &ModelConfig,
        reader: &mut Reader,
        layer: usize,
    ) -> Result<Self, WeightsError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let prefix = format!("model.layers.{layer}");
        let norm = norm::read(config, reader, &format!("{prefix}.post_attention_layernorm"))?;
        let mut linear = |name, shape| {
            Linear::read(reader, &format!("{prefix}.mlp.{name}"), shape, config.mlp_bias)
        };
        Ok(Self {
            norm,
            gate: linear("gate_proj", [inner, hidden])?,
            up: linear("up_proj", [inner, hidden])?,
            down: linear("down_proj", [hidden, inner])?,
        })
    }

    /// Adds the feed-forward output to `x [tokens, hidden]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let (gate, up) = (self.gate.weight.clone(), self.up.weight.clone());
        let gated = ops::swiglu(x.clone(), self.norm.clone(), gate, up);
        self.down.forward_onto(x, gated)
    }
}

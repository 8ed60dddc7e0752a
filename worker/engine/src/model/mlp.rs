//! The gated feed-forward layer.

use burn::{module::Module, tensor::Tensor};
use stoker_ops::ops;

use super::{Reader, linear::Linear};
use crate::weights::{ModelConfig, WeightsError};

/// `y = down(silu(gate(x)) * up(x))`.
#[derive(Module, Debug)]
pub struct Mlp {
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
        let mut linear = |name, shape| {
            let name = format!("model.layers.{layer}.mlp.{name}");
            Linear::read(reader, &name, shape, config.mlp_bias)
        };
        Ok(Self {
            gate: linear("gate_proj", [inner, hidden])?,
            up: linear("up_proj", [inner, hidden])?,
            down: linear("down_proj", [hidden, inner])?,
        })
    }

    /// Adds to `residual [tokens, hidden]` what the layer makes of `x [tokens, hidden]`.
    pub fn forward_onto(&self, residual: Tensor<2>, x: Tensor<2>) -> Tensor<2> {
        let gated = ops::swiglu(x, self.gate.weight(), self.up.weight());
        self.down.forward_onto(residual, gated)
    }
}

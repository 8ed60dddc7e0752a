//! Root-mean-square normalisation.

use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use stoker_ops::ops;

use super::Reader;
use crate::weights::{ModelConfig, WeightsError};

/// `y = x / sqrt(mean(x^2) + epsilon) * gain`.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[width]`
    pub gain: Param<Tensor<1>>,
    /// Keeps the root away from zero.
    pub epsilon: f64,
}

impl RmsNorm {
    /// Reads `name.weight`, one gain for each of `width` elements.
    pub(super) fn read(
        config: &ModelConfig,
        reader: &mut Reader,
        name: &str,
        width: usize,
    ) -> Result<Self, WeightsError> {
        let gain = Param::from_tensor(reader.tensor(&format!("{name}.weight"), [width])?);
        Ok(Self { gain, epsilon: config.rms_norm_eps })
    }

    /// `[tokens, width] -> [tokens, width]`
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        ops::rms_norm(x, self.gain.val(), self.epsilon as f32)
    }
}

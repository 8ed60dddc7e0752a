//! A linear map, with a bias where the model has one.

use burn::tensor::Tensor;
use stoker_ops::ops::{self, Weight};

use super::Reader;
use crate::weights::WeightsError;

/// `y = x * weight^T + bias`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[outputs, inputs]`, and `[outputs]`.
    pub weight: Weight,
}

impl Linear {
    /// Reads `name.weight` of `[outputs, inputs]`, and `name.bias` if the map is `biased`.
    pub(super) fn read(
        reader: &mut Reader,
        name: &str,
        [outputs, inputs]: [usize; 2],
        biased: bool,
    ) -> Result<Self, WeightsError> {
        Self::read_stacked(reader, &[(name, outputs)], inputs, biased)
    }

    /// Reads several maps of the same inputs as one, stacked by rows: `(name, outputs)` of each.
    pub(super) fn read_stacked(
        reader: &mut Reader,
        maps: &[(&str, usize)],
        inputs: usize,
        biased: bool,
    ) -> Result<Self, WeightsError> {
        let names: Vec<_> = maps.iter().map(|(name, _)| format!("{name}.weight")).collect();
        let matrix = reader.matrix(&names, inputs)?;
        let bias = if biased {
            let names: Vec<_> = maps.iter().map(|(name, _)| format!("{name}.bias")).collect();
            Some(reader.vector(&names)?)
        } else {
            None
        };
        Ok(Self { weight: Weight { matrix, bias } })
    }

    /// `residual + x * weight^T + bias`: `[tokens, outputs], [tokens, inputs] -> [tokens, outputs]`
    pub fn forward_onto(&self, residual: Tensor<2>, x: Tensor<2>) -> Tensor<2> {
        ops::linear_add(x, self.weight.clone(), residual)
    }
}

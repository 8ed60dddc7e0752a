//! A linear map, with a bias where the model has one.

use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use stoker_ops::ops::{self, Weight};

use super::Reader;
use crate::weights::WeightsError;

/// `y = x * weight^T + bias`.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[outputs, inputs]`
    pub weight: Param<Tensor<2>>,
    /// `[outputs]`
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// Reads `name.weight` of `shape`, and `name.bias` if the map is `biased`.
    pub(super) fn read(
        reader: &mut Reader,
        name: &str,
        shape: [usize; 2],
        biased: bool,
    ) -> Result<Self, WeightsError> {
        let weight = Param::from_tensor(reader.tensor(&format!("{name}.weight"), shape)?);
        let bias = if biased {
            let bias = reader.tensor(&format!("{name}.bias"), [shape[0]])?;
            Some(Param::from_tensor(bias))
        } else {
            None
        };
        Ok(Self { weight, bias })
    }

    /// The tensors, as operations take them.
    pub fn weight(&self) -> Weight {
        Weight { matrix: self.weight.val(), bias: self.bias.as_ref().map(Param::val) }
    }

    /// `[tokens, inputs] -> [tokens, outputs]`
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        ops::linear(x, self.weight())
    }

    /// `residual + x * weight^T + bias`: `[tokens, outputs], [tokens, inputs] -> [tokens, outputs]`
    pub fn forward_onto(&self, residual: Tensor<2>, x: Tensor<2>) -> Tensor<2> {
        ops::linear_add(x, self.weight(), residual)
    }
}

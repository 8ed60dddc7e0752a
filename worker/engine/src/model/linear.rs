//! A linear map without a bias.

use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use stoker_ops::ops;

use super::Reader;
use crate::weights::WeightsError;

/// `y = x * weight^T`.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[outputs, inputs]`
    pub weight: Param<Tensor<2>>,
}

impl Linear {
    pub(super) fn read(
        reader: &mut Reader,
        name: &str,
        shape: [usize; 2],
    ) -> Result<Self, WeightsError> {
        Ok(Self { weight: Param::from_tensor(reader.tensor(name, shape)?) })
    }

    /// `[tokens, inputs] -> [tokens, outputs]`
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        ops::linear(x, self.weight.val())
    }

    /// `residual + x * weight^T`: `[tokens, inputs], [tokens, outputs] -> [tokens, outputs]`
    pub fn forward_onto(&self, residual: Tensor<2>, x: Tensor<2>) -> Tensor<2> {
        ops::linear_add(x, self.weight.val(), residual)
    }
}

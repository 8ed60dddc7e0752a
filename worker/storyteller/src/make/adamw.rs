//! AdamW with clipping by the global gradient norm, and the learning rate schedule.

use burn::tensor::Tensor;

use crate::make::weights::{Spec, Weights};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.98;
const EPSILON: f64 = 1e-9;
const DECAY: f64 = 0.1;
const CLIP: f64 = 1.0;

/// The optimiser's state: the first and second moments of the gradients, shaped like the weights.
#[derive(Debug, Clone)]
pub struct AdamW {
    /// Running mean of the gradients.
    pub mean: Weights<Tensor<2>>,
    /// Running mean of the squared gradients.
    pub square: Weights<Tensor<2>>,
}

impl AdamW {
    /// Returns the initial state for `weights`.
    pub fn new(weights: &Weights<Tensor<2>>) -> Self {
        let zeros = || weights.as_ref().map(|w| w.zeros_like());
        Self { mean: zeros(), square: zeros() }
    }

    /// Takes one step along `gradients` and returns the new weights. `step` counts from one.
    pub fn step(
        &mut self,
        weights: Weights<Tensor<2>>,
        gradients: Weights<Tensor<2>>,
        specs: &Weights<Spec>,
        rate: f64,
        step: usize,
    ) -> Weights<Tensor<2>> {
        let squares =
            gradients.iter().map(|g| f64::from(g.clone().square().sum().into_scalar::<f32>()));
        let norm = squares.sum::<f64>().sqrt();
        let scale = if norm > CLIP { CLIP / norm } else { 1.0 };
        let (bias1, bias2) = (1.0 - BETA1.powi(step as i32), 1.0 - BETA2.powi(step as i32));

        let blend = |old: &Tensor<2>, new: Tensor<2>, beta: f64| {
            old.clone().mul_scalar(beta).add(new.mul_scalar(1.0 - beta))
        };
        let gradients = gradients.map(|g| g.mul_scalar(scale));
        self.mean = self.mean.as_ref().zip(gradients.clone()).map(|(m, g)| blend(m, g, BETA1));
        self.square = self.square.as_ref().zip(gradients).map(|(v, g)| blend(v, g.square(), BETA2));

        let moments = self.mean.as_ref().zip(self.square.as_ref()).zip(specs.as_ref());
        weights.zip(moments).map(|(w, ((m, v), spec))| {
            let direction = m
                .clone()
                .div_scalar(bias1)
                .div(v.clone().div_scalar(bias2).sqrt().add_scalar(EPSILON));
            // Gains of normalisations are scales: decay towards zero would only harm.
            let decay = if spec.is_norm() { 0.0 } else { DECAY };
            w.mul_scalar(1.0 - rate * decay).sub(direction.mul_scalar(rate))
        })
    }
}

/// The learning rate schedule: linear between `(step, rate)` points, in order.
///
/// A small model with small batches converges only at low rates: at the peak rate the embeddings of
/// the character names, each of which is rare, become too similar. So the rate decays during most
/// of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule(pub Vec<(usize, f64)>);

impl Schedule {
    /// Returns the rate of step `step`, counted from zero. It is constant after the last point.
    pub fn rate(&self, step: usize) -> f64 {
        let mut before = (0, 0.0);
        for &(at, rate) in &self.0 {
            if step < at {
                let fraction = (step - before.0) as f64 / (at - before.0) as f64;
                return before.1 + fraction * (rate - before.1);
            }
            before = (at, rate);
        }
        before.1
    }
}

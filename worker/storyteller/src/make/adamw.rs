//! AdamW with clipping by the norm of all gradients together, and the schedule of the learning rate.

use burn::tensor::Tensor;

use crate::make::weights::{Spec, Weights};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.98;
const EPSILON: f64 = 1e-9;
const DECAY: f64 = 0.1;
const CLIP: f64 = 1.0;

/// The optimiser's memory: running means of gradients and of their squares, shaped like the weights.
#[derive(Debug, Clone)]
pub struct AdamW {
    /// Running mean of the gradients.
    pub mean: Weights<Tensor<2>>,
    /// Running mean of their squares.
    pub square: Weights<Tensor<2>>,
}

impl AdamW {
    /// Memory of nothing, for a model like `weights`.
    pub fn new(weights: &Weights<Tensor<2>>) -> Self {
        let zeros = || weights.as_ref().map(|w| w.zeros_like());
        Self { mean: zeros(), square: zeros() }
    }

    /// One step along `gradients`. `step` counts from one; returns the new weights.
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
            // Gains of normalisations are scales, not evidence: pulling them to zero only hurts.
            let decay = if spec.is_norm() { 0.0 } else { DECAY };
            w.mul_scalar(1.0 - rate * decay).sub(direction.mul_scalar(rate))
        })
    }
}

/// Linear warm-up to `peak`, then half a cosine down to a twentieth of it. `step` counts from zero.
pub fn learning_rate(step: usize, steps: usize, peak: f64) -> f64 {
    let warmup = (steps / 20).clamp(1, 200);
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    let progress = (step - warmup) as f64 / (steps - warmup).max(1) as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos());
    peak * (0.05 + 0.95 * cosine)
}

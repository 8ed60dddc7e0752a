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

/// The learning rate over a run: straight lines between these `(step, rate)`, first to last.
///
/// A model this small on batches this small settles only at low rates: at the peak the names of the cast,
/// each rare in itself, are all pushed together. So most of a run goes downhill.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule(pub Vec<(usize, f64)>);

impl Schedule {
    /// The rate of step `step`, counted from zero; after the last point it stays there.
    pub fn rate(&self, step: usize) -> f64 {
        let mut before = (0, 0.0);
        for &(at, rate) in &self.0 {
            if step < at {
                let way = (step - before.0) as f64 / (at - before.0) as f64;
                return before.1 + way * (rate - before.1);
            }
            before = (at, rate);
        }
        before.1
    }
}

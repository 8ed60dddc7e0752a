//! Scaling of rotary frequencies, which extends a model's context beyond that of its training.

use crate::weights::WeightsError;

/// Scaling of the rotary frequencies `theta^(-2 i / head_dim)`.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// No scaling.
    None,
    /// All frequencies are divided by one factor.
    Linear {
        /// Divisor; positive.
        factor: f64,
    },
    /// Llama 3.1's rule: low frequencies are divided, high ones are not.
    Llama3(Llama3Scaling),
    /// Each frequency has its own divisor. GGUF files store Llama 3.1's rule this way.
    Divisors(Vec<f64>),
}

/// Constants of Llama 3.1's rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3Scaling {
    /// Divisor of the low frequencies.
    pub factor: f64,
    /// Frequencies with fewer rotations than this within the original context are low.
    pub low_freq_factor: f64,
    /// Frequencies with more rotations than this within the original context are high. Greater than
    /// `low_freq_factor`.
    pub high_freq_factor: f64,
    /// Positions the model was first trained for.
    pub original_context_length: usize,
}

impl RopeScaling {
    /// Returns linear scaling; `wrong` creates the error for an invalid factor.
    pub(in crate::weights) fn linear(
        factor: f64,
        wrong: impl Fn(String) -> WeightsError,
    ) -> Result<Self, WeightsError> {
        if !(factor.is_finite() && factor > 0.0) {
            return Err(wrong(format!("is {factor}; must be a positive finite number")));
        }
        Ok(if factor == 1.0 { Self::None } else { Self::Linear { factor } })
    }
}

//! How a model's rotary frequencies are stretched to reach further than it was first trained.

use crate::weights::WeightsError;

/// What becomes of the rotary frequencies `theta^(-2 i / head_dim)`.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// They are used as they are.
    None,
    /// All are divided by one number.
    Linear {
        /// Positive.
        factor: f64,
    },
    /// Llama 3.1's rule: slow ones are divided, fast ones are not.
    Llama3(Llama3Scaling),
    /// Each is divided by its own number, as GGUF files write Llama 3.1's rule.
    Divisors(Vec<f64>),
}

/// The constants of Llama 3.1's rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3Scaling {
    /// By which the slow ones are divided.
    pub factor: f64,
    /// Pairs that turn fewer times than this within the original context are slow.
    pub low_freq_factor: f64,
    /// Pairs that turn more often than this within the original context are fast; above `low_freq_factor`.
    pub high_freq_factor: f64,
    /// Positions the model was first trained for.
    pub original_context_length: usize,
}

impl RopeScaling {
    /// One factor for all; `wrong` makes the error for one that cannot be meant.
    pub(super) fn linear(
        factor: f64,
        wrong: impl Fn(String) -> WeightsError,
    ) -> Result<Self, WeightsError> {
        if !(factor.is_finite() && factor > 0.0) {
            return Err(wrong(format!("is {factor}; must be a positive finite number")));
        }
        Ok(if factor == 1.0 { Self::None } else { Self::Linear { factor } })
    }
}

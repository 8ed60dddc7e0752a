//! Rotary frequencies of a model, scaled where its context was extended after training.

use std::f64::consts::TAU;

use stoker_ops::rope;

use crate::weights::{Llama3Scaling, ModelConfig, RopeScaling};

/// Returns the rotation of each pair of a head between two positions, in radians: `[head_dim / 2]`.
pub(super) fn frequencies(config: &ModelConfig) -> Vec<f64> {
    let plain = rope::frequencies(config.head_dim, config.rope_theta);
    match &config.rope_scaling {
        RopeScaling::None => plain,
        RopeScaling::Linear { factor } => plain.into_iter().map(|f| f / factor).collect(),
        RopeScaling::Llama3(scaling) => plain.into_iter().map(|f| llama3(f, scaling)).collect(),
        RopeScaling::Divisors(divisors) => {
            plain.into_iter().zip(divisors).map(|(f, divisor)| f / divisor).collect()
        }
    }
}

/// Divides low frequencies by the whole factor and high ones by 1, with a linear transition in
/// between, by the number of rotations within the original context.
fn llama3(frequency: f64, scaling: &Llama3Scaling) -> f64 {
    let Llama3Scaling { factor, low_freq_factor: low, high_freq_factor: high, .. } = *scaling;
    let rotations = scaling.original_context_length as f64 * frequency / TAU;
    if rotations < low {
        frequency / factor
    } else if rotations > high {
        frequency
    } else {
        let unscaled = (rotations - low) / (high - low);
        frequency * ((1.0 - unscaled) / factor + unscaled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scales_low_frequencies_only_and_is_continuous() {
        let scaling = Llama3Scaling {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context_length: 8192,
        };
        let frequency = |rotations: f64| rotations * TAU / 8192.0;
        let ratio = |rotations| llama3(frequency(rotations), &scaling) / frequency(rotations);
        assert_eq!(ratio(0.01), 0.125);
        assert_eq!(ratio(0.999), 0.125);
        assert!((ratio(1.001) - 0.125).abs() < 1e-3);
        assert!((ratio(2.5) - 0.5625).abs() < 1e-12, "half-way between 1/8 and 1");
        assert!((ratio(3.999) - 1.0).abs() < 1e-3);
        assert_eq!(ratio(4.001), 1.0);
        assert_eq!(ratio(1000.0), 1.0);
    }
}

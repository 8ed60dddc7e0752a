//! The rotary frequencies of a model, stretched where it was trained to read further than before.

use std::f64::consts::TAU;

use stoker_ops::rope;

use crate::weights::{Llama3Scaling, ModelConfig, RopeScaling};

/// By how much each pair of a head turns from one position to the next, in radians: `[head_dim / 2]`.
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

/// Slow pairs, which see far, are slowed down by the whole factor, fast ones not at all, and those
/// between in proportion to how often they turn within the original context.
fn llama3(frequency: f64, scaling: &Llama3Scaling) -> f64 {
    let Llama3Scaling { factor, low_freq_factor: low, high_freq_factor: high, .. } = *scaling;
    let turns = scaling.original_context_length as f64 * frequency / TAU;
    if turns < low {
        frequency / factor
    } else if turns > high {
        frequency
    } else {
        let kept = (turns - low) / (high - low);
        frequency * ((1.0 - kept) / factor + kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_changes_slow_pairs_only_and_has_no_jumps() {
        let scaling = Llama3Scaling {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context_length: 8192,
        };
        let turning = |turns: f64| turns * TAU / 8192.0;
        let ratio = |turns| llama3(turning(turns), &scaling) / turning(turns);
        assert_eq!(ratio(0.01), 0.125);
        assert_eq!(ratio(0.999), 0.125);
        assert!((ratio(1.001) - 0.125).abs() < 1e-3);
        assert!((ratio(2.5) - 0.5625).abs() < 1e-12, "half-way between 1/8 and 1");
        assert!((ratio(3.999) - 1.0).abs() < 1e-3);
        assert_eq!(ratio(4.001), 1.0);
        assert_eq!(ratio(1000.0), 1.0);
    }
}

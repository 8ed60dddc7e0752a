//! Drawing a token from logits: the definition, and the parameters for a device that draws.

use crate::noise::Noise;

/// Draw of a token from a row of logits: the one with the greatest `logit / temperature + noise`,
/// or with the greatest logit at a temperature of 0. Ties go to the lowest id.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Temperature; 0 is greedy.
    pub temperature: f32,
    /// Noise of this draw.
    pub noise: Noise,
}

impl Draw {
    /// Draws the most likely token, whatever the noise.
    pub const GREEDY: Self = Self { temperature: 0.0, noise: Noise::NONE };

    /// Number of words that encode a draw for a device.
    pub const WORDS: usize = 3;

    /// Returns the bits of the temperature, and the key of the noise.
    pub fn words(&self) -> [i32; Self::WORDS] {
        let [low, high] = self.noise.key();
        [self.temperature.to_bits(), low, high].map(u32::cast_signed)
    }

    /// Decodes [`Self::words`].
    pub fn from_words([temperature, low, high]: [i32; Self::WORDS]) -> Self {
        let [temperature, low, high] = [temperature, low, high].map(i32::cast_unsigned);
        let noise = Noise::from_key([low, high]);
        Self { temperature: f32::from_bits(temperature), noise }
    }

    /// Draws one of `kept`, the tokens that passed the filters, from `logits [vocab]`. Logits are
    /// finite, or -∞ for masked tokens. The most likely token is always a candidate.
    pub fn pick(&self, logits: &[f32], kept: impl Iterator<Item = u32>) -> u32 {
        let greedy = argmax(logits.iter().map(|logit| f64::from(*logit)));
        if self.temperature == 0.0 {
            return greedy;
        }
        let temperature = f64::from(self.temperature);
        let scaled = |token: u32| f64::from(logits[token as usize]) / temperature;
        // Starts with the most likely token, which beats most others without their noise.
        let mut best = (greedy, scaled(greedy) + self.noise.of(greedy));
        for token in kept {
            if scaled(token) + Noise::MAX < best.1 {
                continue;
            }
            let score = scaled(token) + self.noise.of(token);
            if score > best.1 || (score == best.1 && token < best.0) {
                best = (token, score);
            }
        }
        best.0
    }
}

/// Returns the index of the first greatest value.
fn argmax(values: impl Iterator<Item = f64>) -> u32 {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, value) in values.enumerate() {
        if value > best.1 {
            best = (i as u32, value);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        let logits = [0.5f32, 2.0, 2.0, -1.0];
        assert_eq!(Draw::GREEDY.pick(&logits, 0..4), 1);
        assert_eq!(Draw::GREEDY.pick(&logits, [3, 2, 1].into_iter()), 1);
    }

    #[test]
    fn skipping_tokens_does_not_change_the_draw() {
        let logits: Vec<f32> = (0..500).map(|i| ((i * 37) % 101) as f32 * 0.4 - 20.0).collect();
        for position in 0..300 {
            let noise = Noise::new(3, 0, position);
            let draw = Draw { temperature: 1.0, noise };
            let scores = (0..).zip(&logits).map(|(t, l)| f64::from(*l) + noise.of(t));
            assert_eq!(draw.pick(&logits, 0..500), argmax(scores));
        }
    }

    #[test]
    fn words_round_trip() {
        for draw in [
            Draw::GREEDY,
            Draw { temperature: 0.7, noise: Noise::new(u64::MAX, 3, 77) },
            Draw { temperature: f32::MIN_POSITIVE, noise: Noise::new(5, u32::MAX, usize::MAX) },
        ] {
            assert_eq!(Draw::from_words(draw.words()), draw);
        }
    }
}

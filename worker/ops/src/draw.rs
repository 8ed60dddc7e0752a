//! Drawing a token from logits: what it is by definition, and what a device that draws is told.

use crate::noise::Noise;

/// How the token after a row of logits is drawn: it has the greatest `logit / temperature + noise`, or at a
/// temperature of 0 the greatest logit. Ties go to the lowest id.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// 0 is greedy.
    pub temperature: f32,
    /// Of this draw.
    pub noise: Noise,
}

impl Draw {
    /// The likeliest token, whatever the noise.
    pub const GREEDY: Self = Self { temperature: 0.0, noise: Noise::NONE };

    /// Numbers that say it to a device.
    pub const WORDS: usize = 3;

    /// The bits of the temperature, and the key of the noise.
    pub fn words(&self) -> [i32; Self::WORDS] {
        let [low, high] = self.noise.key();
        [self.temperature.to_bits(), low, high].map(u32::cast_signed)
    }

    /// The same, back again.
    pub fn from_words([temperature, low, high]: [i32; Self::WORDS]) -> Self {
        let [temperature, low, high] = [temperature, low, high].map(i32::cast_unsigned);
        let noise = Noise::from_key([low, high]);
        Self { temperature: f32::from_bits(temperature), noise }
    }

    /// Draws one of `kept`, tokens of `logits [vocab]`, which are finite, or -∞ for tokens that may not come.
    /// The likeliest of all is always kept.
    pub fn pick(&self, logits: &[f32], kept: impl Iterator<Item = u32>) -> u32 {
        let greedy = argmax(logits.iter().map(|logit| f64::from(*logit)));
        if self.temperature == 0.0 {
            return greedy;
        }
        let temperature = f64::from(self.temperature);
        let scaled = |token: u32| f64::from(logits[token as usize]) / temperature;
        // Begin with the likeliest: it beats most others before their noise need be known.
        let mut best = (greedy, scaled(greedy) + self.noise.of(greedy));
        for token in kept {
            if scaled(token) + Noise::MOST < best.1 {
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

/// The first place of the greatest value.
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
    fn the_shortcut_changes_nothing() {
        let logits: Vec<f32> = (0..500).map(|i| ((i * 37) % 101) as f32 * 0.4 - 20.0).collect();
        for position in 0..300 {
            let noise = Noise::new(3, 0, position);
            let draw = Draw { temperature: 1.0, noise };
            let scores = (0..).zip(&logits).map(|(t, l)| f64::from(*l) + noise.of(t));
            assert_eq!(draw.pick(&logits, 0..500), argmax(scores));
        }
    }

    #[test]
    fn words_say_it_all() {
        for draw in [
            Draw::GREEDY,
            Draw { temperature: 0.7, noise: Noise::new(u64::MAX, 3, 77) },
            Draw { temperature: f32::MIN_POSITIVE, noise: Noise::new(5, u32::MAX, usize::MAX) },
        ] {
            assert_eq!(Draw::from_words(draw.words()), draw);
        }
    }
}

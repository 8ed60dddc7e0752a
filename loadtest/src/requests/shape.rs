//! Lengths of synthetic prompts and responses.

use std::{fmt, str::FromStr};

use crate::rng::SeededRng;

/// Maximum length of a prompt or a response, in tokens: beyond any context, and a prompt of it still
/// fits into memory.
pub const MAX_LENGTH: u32 = 10_000_000;

/// Lengths of prompts and responses, in tokens: `128:64`, or with ranges, `100-400:16-64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyntheticShape {
    /// Length of a prompt, including tokens that the model adds at its start.
    pub input: LengthRange,
    /// Length of a response.
    pub output: LengthRange,
}

/// A uniform distribution of lengths from `min` to `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LengthRange {
    pub(crate) min: u32,
    max: u32,
}

impl LengthRange {
    /// Draws a length.
    pub(crate) fn draw(self, rng: &mut SeededRng) -> u32 {
        self.min + rng.below(self.max - self.min + 1)
    }
}

impl FromStr for LengthRange {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.parse().map_err(drop);
        let range = Self { min: number(min)?, max: number(max)? };
        if range.min >= 1 && range.min <= range.max && range.max <= MAX_LENGTH {
            Ok(range)
        } else {
            Err(())
        }
    }
}

impl fmt::Display for LengthRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.min)?;
        if self.max > self.min { write!(f, "-{}", self.max) } else { Ok(()) }
    }
}

impl FromStr for SyntheticShape {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_once(':')
            .and_then(|(i, o)| Some(Self { input: i.parse().ok()?, output: o.parse().ok()? }))
            .ok_or(
                "write tokens as IN:OUT, for instance 128:64, or with ranges, 100-400:16-64; at most \
                 10000000",
            )
    }
}

impl fmt::Display for SyntheticShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.input, self.output)
    }
}

/// Prefixes that prompts share: `512:8` is one of eight, each of 512 tokens, before every prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedPrefix {
    /// Length of a prefix, in tokens.
    pub tokens: u32,
    /// Number of different prefixes.
    pub count: u32,
}

impl FromStr for SharedPrefix {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (tokens, count) = text.split_once(':').unwrap_or((text, "1"));
        match (tokens.parse(), count.parse()) {
            (Ok(tokens @ 1..=MAX_LENGTH), Ok(count @ 1..)) => Ok(Self { tokens, count }),
            _ => Err("write TOKENS, or TOKENS:COUNT for several prefixes, as in 512:8"),
        }
    }
}

impl fmt::Display for SharedPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.tokens, self.count)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn shapes_round_trip_through_text() {
        for text in ["1:1", "128:64", "100-400:16-64"] {
            assert_eq!(text.parse::<SyntheticShape>().unwrap().to_string(), text);
        }
        assert_eq!("7-7:1".parse::<SyntheticShape>().unwrap().to_string(), "7:1");
        for bad in ["", "128", "0:1", "1:0", "2-1:1", "a:b", "1:2:3", "-1:1", "1-:1", "10000001:1"]
        {
            assert!(bad.parse::<SyntheticShape>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_prefix_has_a_length_and_perhaps_a_count() {
        for (text, shown) in [("512", "512:1"), ("512:8", "512:8")] {
            assert_eq!(text.parse::<SharedPrefix>().unwrap().to_string(), shown);
        }
        for bad in ["", "0", "5:0", ":5", "5:", "a", "5:5:5", "-5"] {
            assert!(bad.parse::<SharedPrefix>().is_err(), "{bad:?}");
        }
    }
}

//! How many tokens are drafted.

use std::{fmt, num::NonZeroUsize, str::FromStr};

/// Draft tokens of one sequence in one step, at most.
pub const MAX_DRAFT_TOKENS: usize = 16;

/// How many tokens are drafted for a sequence in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Depth {
    /// As many as pay, by how often they hold and what steps cost.
    #[default]
    Adaptive,
    /// So many, wherever there is room; at most [`MAX_DRAFT_TOKENS`].
    Fixed(NonZeroUsize),
}

/// What no depth is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither `adaptive` nor a number of tokens from 1 to {MAX_DRAFT_TOKENS}")]
pub struct NotADepth(String);

impl FromStr for Depth {
    type Err = NotADepth;

    fn from_str(text: &str) -> Result<Self, NotADepth> {
        if text == "adaptive" {
            return Ok(Self::Adaptive);
        }
        match text.parse::<NonZeroUsize>() {
            Ok(tokens) if tokens.get() <= MAX_DRAFT_TOKENS => Ok(Self::Fixed(tokens)),
            _ => Err(NotADepth(text.to_owned())),
        }
    }
}

impl fmt::Display for Depth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adaptive => f.write_str("adaptive"),
            Self::Fixed(tokens) => tokens.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_depth_is_a_word_or_a_small_number() {
        for text in ["adaptive", "1", "5", "16"] {
            assert_eq!(text.parse().map(|depth: Depth| depth.to_string()).as_deref(), Ok(text));
        }
        for text in ["0", "17", "100", "-1", "", "many", "18446744073709551616"] {
            let error = text.parse::<Depth>().map_err(|error| error.to_string());
            let want =
                format!("{text:?} is neither `adaptive` nor a number of tokens from 1 to 16");
            assert_eq!(error, Err(want));
        }
    }
}

//! The number of draft tokens, as configured.

use std::{fmt, num::NonZeroUsize, str::FromStr};

/// Maximum number of draft tokens of one sequence in one step.
pub const MAX_DRAFT_TOKENS: usize = 16;

/// Number of draft tokens of a sequence in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Depth {
    /// As many as pay, by the acceptance rate and the cost of steps.
    #[default]
    Adaptive,
    /// This number, wherever there is room; at most [`MAX_DRAFT_TOKENS`].
    Fixed(NonZeroUsize),
}

/// A text that is not a [`Depth`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither `adaptive` nor a number of tokens from 1 to {MAX_DRAFT_TOKENS}")]
pub struct ParseDepthError(String);

impl FromStr for Depth {
    type Err = ParseDepthError;

    fn from_str(text: &str) -> Result<Self, ParseDepthError> {
        if text == "adaptive" {
            return Ok(Self::Adaptive);
        }
        match text.parse::<NonZeroUsize>() {
            Ok(tokens) if tokens.get() <= MAX_DRAFT_TOKENS => Ok(Self::Fixed(tokens)),
            _ => Err(ParseDepthError(text.to_owned())),
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
    fn a_depth_is_adaptive_or_a_number_up_to_the_maximum() {
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

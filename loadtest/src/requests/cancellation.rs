//! Requests that the client gives up on, as users do who close a page.

use std::{fmt, str::FromStr};

use crate::rng::SeededRng;

/// Cancels a share of requests: `0.1` after a random number of tokens, `0.1:16` after 16.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cancellation {
    /// Share of requests, from 0 to 1.
    pub share: f64,
    /// Number of received tokens. `None` draws it for each request.
    pub tokens: Option<u32>,
}

impl Cancellation {
    /// Returns after how many tokens of at most `max_tokens` request `index` is cancelled; `None` if it
    /// is not.
    pub fn after(&self, seed: u64, index: u64, max_tokens: u32) -> Option<u32> {
        let mut rng = SeededRng::new("cancel", seed, index);
        if rng.unit() > self.share {
            return None;
        }
        Some(self.tokens.unwrap_or_else(|| rng.below(max_tokens)))
    }
}

impl FromStr for Cancellation {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let usage = "write the share of requests, from 0 to 1, or SHARE:TOKENS, as in 0.1:16";
        let (share, tokens) = match text.split_once(':') {
            Some((share, tokens)) => (share, Some(tokens.parse().map_err(|_| usage)?)),
            None => (text, None),
        };
        match share.parse() {
            Ok(share) if (0.0..=1.0).contains(&share) => Ok(Self { share, tokens }),
            _ => Err(usage),
        }
    }
}

impl fmt::Display for Cancellation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.share)?;
        self.tokens.map_or(Ok(()), |tokens| write!(f, ":{tokens}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn the_share_of_requests_is_cancelled_and_the_same_ones_in_every_run() {
        let cancel: Cancellation = "0.25".parse().unwrap();
        let after: Vec<_> = (0..4_000).map(|index| cancel.after(7, index, 100)).collect();
        let cancelled = after.iter().flatten().count();
        assert!((900..1_100).contains(&cancelled), "{cancelled}");
        assert!(after.iter().flatten().all(|tokens| *tokens < 100));
        assert!(after.iter().flatten().any(|tokens| *tokens > 50));
        assert_eq!(after, (0..4_000).map(|i| cancel.after(7, i, 100)).collect::<Vec<_>>());
        let cancel: Cancellation = "1:16".parse().unwrap();
        assert_eq!((cancel.after(7, 0, 4), cancel.to_string().as_str()), (Some(16), "1:16"));
        let never: Cancellation = "0".parse().unwrap();
        assert!((0..1_000).all(|index| never.after(7, index, 4).is_none()));
        for bad in ["", "1.5", "-0.1", "NaN", "0.5:", "0.5:x", "10%"] {
            assert!(bad.parse::<Cancellation>().is_err(), "{bad:?}");
        }
    }
}

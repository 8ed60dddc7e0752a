//! Reasons why a request fails.

use std::time::Duration;

use crate::scheduler::AdmissionError;

/// Reason why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A logit is not finite.
    #[error(
        "the model computed a logit that is not finite, for token {token} at position {position}"
    )]
    NotFinite {
        /// Id of the token.
        token: u32,
        /// Position in the sequence.
        position: usize,
    },
    /// The scheduler rejected it.
    #[error(transparent)]
    Rejected(#[from] AdmissionError),
    /// A step panicked, and the engine cannot be used any more.
    #[error("a step of the engine panicked: {cause}")]
    EnginePanicked {
        /// Message of the panic.
        cause: String,
        /// Choices of this request that were part of the step.
        sequences: Vec<u32>,
    },
    /// The deadline has passed.
    #[error("its deadline has passed")]
    DeadlinePassed {
        /// Whether it had been scheduled by then.
        scheduled: bool,
    },
    /// The deadline would pass before the first token.
    #[error(
        "its first token takes at least {} ms, and its deadline is in {} ms",
        .expected.as_millis(), .remaining.as_millis()
    )]
    TooLate {
        /// Minimum time to the first token.
        expected: Duration,
        /// Time until the deadline.
        remaining: Duration,
    },
    /// The resumed tokens and the text that was sent for them do not match.
    #[error(
        "choice {choice} cannot be resumed: its {tokens} tokens decode to {text} bytes of text, and {sent} bytes were sent"
    )]
    ResumeTextMismatch {
        /// Index of the sequence within the request.
        choice: u32,
        /// Number of resumed tokens.
        tokens: usize,
        /// Bytes of text that they decode to.
        text: usize,
        /// Bytes of text that were sent.
        sent: usize,
    },
    /// Resumed tokens follow one that ends the sequence.
    #[error("choice {choice} cannot be resumed: it ends with token {end} of {tokens}")]
    TokensAfterEnd {
        /// Index of the sequence within the request.
        choice: u32,
        /// Number of tokens up to the end.
        end: usize,
        /// Number of resumed tokens.
        tokens: usize,
    },
}

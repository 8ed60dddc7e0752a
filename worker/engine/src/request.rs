//! What goes into the engine, and what comes out.

use std::time::{Duration, Instant};

use crate::sampling::Sampling;

/// A request, checked against the model's limits and tokenised.
#[derive(Debug, Clone)]
pub struct Request {
    /// At least one token id below the vocabulary's size, and fewer than the longest sequence.
    pub prompt: Vec<u32>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// When to stop.
    pub stopping: Stopping,
    /// When it began to wait; `Timings::queue` counts from here.
    pub arrived: Instant,
}

/// When a sequence ends.
#[derive(Debug, Clone, Default)]
pub struct Stopping {
    /// New tokens at most; the end of the context is a limit of its own.
    pub max_tokens: Option<usize>,
    /// Strings that end the text.
    pub strings: Vec<String>,
    /// Tokens that end the text, besides the model's own.
    pub token_ids: Vec<u32>,
    /// Go on after the model's end-of-text token.
    pub ignore_eos: bool,
    /// Keep what ended the text, string or token, in it.
    pub include_stop: bool,
}

/// What a sequence's client is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// New tokens, and the text that is certain now.
    Token {
        /// Every id since the last event.
        ids: Vec<u32>,
        /// Whole characters; empty while a character or a stop string may still complete.
        text: String,
    },
    /// The end.
    Finished(Finish),
    /// This sequence could not go on; others are not touched.
    Failed(Failure),
}

/// How a sequence ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens drawn.
    pub completion_tokens: usize,
    /// Where the time went.
    pub timings: Timings,
}

/// Why a sequence ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// The model's end of text, or a stop token of the request.
    StopToken(u32),
    /// A stop string of the request.
    StopString(String),
    /// The token limit or the end of the context.
    Length,
}

/// Where a sequence's time went. `queue + prefill + decode` is all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// From arrival to the first step it took part in.
    pub queue: Duration,
    /// From there to its first token.
    pub prefill: Duration,
    /// From there to its last.
    pub decode: Duration,
    /// Steps it took part in.
    pub steps: u32,
    /// Times it was preempted and computed again.
    pub preemptions: u32,
}

/// Why a sequence could not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The model gave something that is not a number.
    #[error("the model gave a logit that is not finite, for token {token} at position {position}")]
    NotFinite {
        /// Of the vocabulary.
        token: u32,
        /// In the sequence.
        position: usize,
    },
}

/// Where a sequence's events go. It must not block: it is called on the device's thread.
pub trait Sink: Send {
    /// Takes an event.
    fn send(&mut self, event: Event);
    /// Whether nobody listens any more; the sequence is dropped before the next step.
    fn is_closed(&self) -> bool;
}

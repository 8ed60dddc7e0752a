//! What goes into the engine, and what comes out.

use std::{
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    blocks::Scope,
    sampling::{Adjustments, Logprobs, Sampling, TokenLogprob},
    scheduler::{AdmissionError, QueueKey},
};

/// A request, checked against the model's limits and tokenised.
#[derive(Debug, Clone)]
pub struct Request {
    /// At least one token id below the vocabulary's size, and fewer than the longest sequence.
    /// All of its sequences share them.
    pub prompt: Arc<[u32]>,
    /// How tokens are drawn; of several sequences, those of the first.
    pub sampling: Sampling,
    /// What is done to logits before.
    pub adjustments: Adjustments,
    /// Sequences that continue the prompt. They differ in their choice, which counts up from that of
    /// `sampling`.
    pub num_sequences: NonZeroU32,
    /// When to stop.
    pub stopping: Stopping,
    /// Which log probabilities are wanted.
    pub logprobs: Logprobs,
    /// What another engine made of it before: one for each sequence, in order, or none.
    pub resumed: Vec<Resumed>,
    /// Whether another engine had accepted it: it goes before those that come now.
    pub accepted_before: bool,
    /// Whether it was part of a step that panicked elsewhere: it runs in steps of its own until it is past that point.
    pub suspect: bool,
    /// Who shares what is computed of it.
    pub scope: Scope,
    /// Compute all of the prompt, whatever the cache has of it.
    pub bypass_prefix_cache: bool,
    /// When it began to wait; `Timings::queue` counts from here.
    pub arrived: Instant,
    /// Who waits for it, and how urgent it is.
    pub queue_key: QueueKey,
    /// Its answer is of no use after this.
    pub deadline: Option<Instant>,
}

impl Request {
    /// Whether another engine had accepted it.
    pub(crate) fn continues(&self) -> bool {
        self.accepted_before || !self.resumed.is_empty()
    }

    /// Whether log probabilities of the prompt are still to be told: they come before the first token.
    pub(crate) fn tells_prompt(&self) -> bool {
        self.logprobs.prompt && self.resumed.is_empty()
    }
}

/// What there is of a sequence that another engine began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resumed {
    /// Every id drawn so far.
    pub tokens: Vec<u32>,
    /// Bytes of text that were told with them.
    pub text_bytes: usize,
    /// Whether its end was told too.
    pub ended: bool,
}

/// When a sequence ends.
#[derive(Debug, Clone, Default)]
pub struct Stopping {
    /// New tokens at most; the end of the context is a limit of its own.
    pub max_tokens: Option<usize>,
    /// So many new tokens come in any case, unless the context ends: before, tokens that end the text are not
    /// drawn and strings that end it are not looked for.
    pub min_tokens: usize,
    /// Strings that end the text.
    pub strings: Vec<String>,
    /// Tokens that end the text, besides the model's own.
    pub token_ids: Vec<u32>,
    /// Go on after the model's end-of-text token.
    pub ignore_eos: bool,
    /// Keep what ended the text, string or token, in it.
    pub include_stop: bool,
}

/// What a request's client is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Tokens of the prompt but the first, in order: all of them before the first new token, in parts of at
    /// most [`PROMPT_PART`].
    PromptLogprobs(Vec<TokenLogprob>),
    /// A new token.
    Token(Token),
    /// A sequence lost its blocks and waits to be computed again. At most one between two tokens of a sequence.
    Preempted {
        /// Which of the request's sequences.
        choice: u32,
    },
    /// The end of a sequence.
    Finished(Finish),
    /// The request could not go on; others are not touched.
    Failed(RequestError),
}

/// Tokens in one [`Event::PromptLogprobs`], at most: a message to a client must not become too long for it.
pub const PROMPT_PART: usize = 256;

/// A new token, and the text that is certain now.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Which of the request's sequences it continues.
    pub choice: u32,
    /// The token.
    pub id: u32,
    /// Whole characters; empty while a character or a stop string may still complete.
    pub text: String,
    /// How likely it was, if that is wanted.
    pub logprob: Option<TokenLogprob>,
}

/// How a sequence ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// Which of the request's sequences.
    pub choice: u32,
    /// Why.
    pub reason: FinishReason,
    /// With the last of the request's sequences to end: what all of them came to.
    pub summary: Option<Summary>,
}

/// What a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Tokens of the prompt, which all sequences share.
    pub prompt_tokens: usize,
    /// Of these, the ones that the cache had when the request first got its place.
    pub cached_prompt_tokens: usize,
    /// Tokens drawn, of all sequences.
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

/// Where a request's time went. `queue + prefill + decode` is all of it.
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
    /// Times a sequence of it was preempted and computed again.
    pub preemptions: u32,
    /// Tokens that a drafter proposed and the model looked at.
    pub drafted: u32,
    /// How many of them were what the model drew.
    pub accepted: u32,
}

/// Why a request could not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The model gave something that is not a number.
    #[error("the model gave a logit that is not finite, for token {token} at position {position}")]
    NotFinite {
        /// Of the vocabulary.
        token: u32,
        /// In the sequence.
        position: usize,
    },
    /// The scheduler refused it.
    #[error(transparent)]
    Rejected(#[from] AdmissionError),
    /// A step panicked, and the engine is of no use any more.
    #[error("a step of the engine panicked: {cause}")]
    EnginePanicked {
        /// What the panic said.
        cause: String,
        /// Sequences of this request that were part of the step, by choice.
        sequences: Vec<u32>,
    },
    /// The deadline has passed.
    #[error("its deadline has passed")]
    DeadlinePassed {
        /// Whether it had a place by then.
        began: bool,
    },
    /// The deadline would pass before the first token.
    #[error(
        "its answer would begin in {} ms at the earliest, and its deadline is in {} ms",
        .expected.as_millis(), .left.as_millis()
    )]
    TooLate {
        /// How long it would take at the least.
        expected: Duration,
        /// How long it may take.
        left: Duration,
    },
    /// What is to be resumed is not what this engine would have made.
    #[error(
        "choice {choice} cannot be resumed: {text} bytes of text belong to its {tokens} tokens, and {told} were told"
    )]
    NotItsText {
        /// The sequence.
        choice: u32,
        /// Tokens that were drawn.
        tokens: usize,
        /// Bytes of their text.
        text: usize,
        /// Bytes that were told.
        told: usize,
    },
    /// Tokens come after one that ends the text.
    #[error("choice {choice} cannot be resumed: it ends with token {end} of {tokens}")]
    Ended {
        /// The sequence.
        choice: u32,
        /// Tokens up to its end.
        end: usize,
        /// Tokens that were drawn.
        tokens: usize,
    },
}

/// Where a request's events go. It must not block: it is called on the device's thread.
pub trait EventSink: Send {
    /// Takes an event.
    fn send(&mut self, event: Event);
    /// The request takes part in a step for the first time: it does not wait any more. Called at most once, and not for
    /// one that ends before.
    fn scheduled(&mut self) {}
    /// Whether nobody listens any more; the request is dropped before the next step.
    fn is_closed(&self) -> bool;
}

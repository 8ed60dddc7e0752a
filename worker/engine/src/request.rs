//! Requests to the engine, and the events that it sends.

use std::{
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    error::RequestError,
    kv_cache::Scope,
    sampling::{Adjustments, Logprobs, Sampling, TokenLogprob},
    scheduler::QueueKey,
    step_report::Tag,
};

/// A tokenised request, validated against the model's limits.
#[derive(Debug, Clone)]
pub struct Request {
    /// Token ids of the prompt, which all sequences share: at least one, each below the vocabulary
    /// size, and fewer than the maximum sequence length.
    pub prompt: Arc<[u32]>,
    /// Sampling parameters of the first sequence.
    pub sampling: Sampling,
    /// Adjustments of the logits before sampling.
    pub adjustments: Adjustments,
    /// Number of completions of the prompt. They differ in their choice, which counts up from that
    /// of `sampling`.
    pub num_sequences: NonZeroU32,
    /// Stop conditions.
    pub stopping: Stopping,
    /// Requested log probabilities.
    pub logprobs: Logprobs,
    /// State of each sequence, in order, if another engine had started the request; else empty.
    pub resumed: Vec<Resumed>,
    /// Whether another engine had accepted it. It is queued ahead of new requests.
    pub accepted_before: bool,
    /// Whether it was part of a step that panicked on another worker. It runs in steps of its own
    /// until it is past that point.
    pub suspect: bool,
    /// Scope in which its cached blocks are shared.
    pub scope: Scope,
    /// Whether to compute all of the prompt, whatever the prefix cache has.
    pub bypass_prefix_cache: bool,
    /// Time of arrival, from which the wait in the queue counts.
    pub arrived: Instant,
    /// Priority and tenant.
    pub queue_key: QueueKey,
    /// Time after which the response is of no use.
    pub deadline: Option<Instant>,
}

impl Request {
    /// Returns a request for one completion of `prompt` that arrives now, without limits.
    pub fn new(prompt: impl Into<Arc<[u32]>>) -> Self {
        Self {
            prompt: prompt.into(),
            sampling: Sampling::default(),
            adjustments: Adjustments::default(),
            num_sequences: NonZeroU32::MIN,
            stopping: Stopping::default(),
            logprobs: Logprobs::default(),
            resumed: Vec::new(),
            accepted_before: false,
            suspect: false,
            scope: Scope::default(),
            bypass_prefix_cache: false,
            arrived: Instant::now(),
            queue_key: QueueKey::default(),
            deadline: None,
        }
    }

    /// Whether another engine had accepted or started it.
    pub(crate) fn is_resubmitted(&self) -> bool {
        self.accepted_before || !self.resumed.is_empty()
    }

    /// Whether log probabilities of the prompt are still to be sent; they precede the first token.
    pub(crate) fn needs_prompt_logprobs(&self) -> bool {
        self.logprobs.prompt && self.resumed.is_empty()
    }
}

/// State of a sequence that another engine has started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resumed {
    /// All token ids drawn so far.
    pub tokens: Vec<u32>,
    /// Bytes of text that were sent for them.
    pub text_bytes: usize,
    /// Whether its end was sent as well.
    pub ended: bool,
}

/// Stop conditions of a sequence.
#[derive(Debug, Clone, Default)]
pub struct Stopping {
    /// Maximum number of new tokens; the end of the context is a limit of its own.
    pub max_tokens: Option<usize>,
    /// Minimum number of new tokens, unless the context ends. Until then, stop tokens are not drawn
    /// and stop strings are not matched.
    pub min_tokens: usize,
    /// Stop strings.
    pub strings: Vec<String>,
    /// Stop tokens, besides the model's end-of-text tokens.
    pub token_ids: Vec<u32>,
    /// Whether to continue after the model's end-of-text token.
    pub ignore_eos: bool,
    /// Whether the text includes the stop string or token that ended it.
    pub include_stop: bool,
}

/// An event of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Log probabilities of the prompt tokens but the first, in order. All of them precede the
    /// first new token, in chunks of at most [`PROMPT_LOGPROBS_CHUNK`].
    PromptLogprobs(Vec<TokenLogprob>),
    /// A new token.
    Token(Token),
    /// A sequence was preempted and waits to be recomputed. Sent at most once between two tokens of
    /// a sequence.
    Preempted {
        /// Index of the sequence within the request.
        choice: u32,
    },
    /// The end of a sequence.
    Finished(Finish),
    /// The request failed; other requests are not affected.
    Failed(RequestError),
}

/// Maximum number of tokens in one [`Event::PromptLogprobs`], which bounds the size of a message to
/// the client.
pub const PROMPT_LOGPROBS_CHUNK: usize = 256;

/// A new token, and the text that is final with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Index of the sequence within the request.
    pub choice: u32,
    /// The token id.
    pub id: u32,
    /// Whole characters; empty while a character or a stop string may still complete.
    pub text: String,
    /// Its log probability, if requested.
    pub logprob: Option<TokenLogprob>,
}

/// The end of a sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// Index of the sequence within the request.
    pub choice: u32,
    /// Reason of the end.
    pub reason: FinishReason,
    /// Totals of the request, with the last of its sequences to end.
    pub summary: Option<Summary>,
}

/// Totals of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Number of prompt tokens, which all sequences share.
    pub prompt_tokens: usize,
    /// Number of prompt tokens that were cached when the request was first admitted.
    pub cached_prompt_tokens: usize,
    /// Number of tokens drawn, of all sequences.
    pub completion_tokens: usize,
    /// Timings of the request.
    pub timings: Timings,
}

/// Why a sequence ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// The model's end-of-text token, or a stop token of the request.
    StopToken(u32),
    /// A stop string of the request.
    StopString(String),
    /// The token limit or the end of the context.
    Length,
}

/// Timings of a request. It was queued from its arrival to `scheduled`, prefilled until
/// `first_token`, and decoded until `last_token`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// Begin of the first step that it took part in.
    pub scheduled: Instant,
    /// When its first token was drawn.
    pub first_token: Instant,
    /// When its last token was drawn and converted to text.
    pub last_token: Instant,
    /// Time that the conversion of its tokens to text took.
    pub detokenize: Duration,
    /// Number of steps that it took part in.
    pub steps: u32,
    /// Number of preemptions of its sequences.
    pub preemptions: u32,
    /// Number of draft tokens that were verified.
    pub drafted: u32,
    /// Number of draft tokens that were accepted.
    pub accepted: u32,
}

/// Receiver of a request's events. It is called on the engine's thread and must not block.
pub trait EventSink: Send {
    /// Receives an event.
    fn send(&mut self, event: Event);
    /// Called when the request is first scheduled and waits no longer: at most once, and never if
    /// it ends before.
    fn scheduled(&mut self) {}
    /// Whether the receiver is gone; then the request is dropped before the next step.
    fn is_closed(&self) -> bool;
    /// Tag by which [`crate::StepReport`] names the request, if it is to.
    fn tag(&self) -> Option<Tag> {
        None
    }
}

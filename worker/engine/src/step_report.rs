//! What a step did, for traces and metrics.

use std::{
    any::Any,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::scheduler::ScheduledSequence;

/// A value of the receiver of a request's events, by which it knows its requests in reports.
pub type Tag = Arc<dyn Any + Send + Sync>;

/// The last step of an engine. Its parts follow each other: draft, plan, run, sample.
#[derive(Debug, Clone)]
pub struct StepReport {
    /// Number of the step, from 1.
    pub step: u64,
    /// When it began.
    pub began: Instant,
    /// When the draft tokens were known.
    pub drafted: Instant,
    /// When the batch was known.
    pub planned: Instant,
    /// When the model had run.
    pub ran: Instant,
    /// When all tokens were drawn, and their events sent.
    pub ended: Instant,
    /// Number of sequences.
    pub sequences: usize,
    /// Number of prompt tokens, and tokens of preempted sequences, that were computed.
    pub prefill_tokens: usize,
    /// Number of tokens that decoding sequences computed, draft tokens included.
    pub decode_tokens: usize,
    /// Number of tokens in the KV cache that were attended to, those of the step included.
    pub context_tokens: usize,
    /// Number of draft tokens that were verified.
    pub draft_tokens: usize,
    /// How many of them were accepted.
    pub accepted_tokens: usize,
    /// Number of tokens that were generated.
    pub generated_tokens: usize,
    /// The parts of those requests whose receivers have a tag.
    pub parts: Vec<StepPart>,
}

/// A step's part for one sequence.
#[derive(Clone)]
pub struct StepPart {
    /// The tag of the request's receiver.
    pub tag: Tag,
    /// Index of the sequence within the request.
    pub choice: u32,
    /// When the request was first scheduled.
    pub scheduled: Instant,
    /// When it had its first token, unless that was drawn in this step or is still to come.
    pub first_token: Option<Instant>,
    /// Position of the first token that was computed.
    pub start: usize,
    /// Number of tokens that were computed.
    pub tokens: usize,
    /// How many of these are draft tokens.
    pub draft_tokens: usize,
    /// Number of tokens that were generated.
    pub generated_tokens: usize,
}

impl StepReport {
    /// The report before the first step.
    pub(crate) fn none() -> Self {
        let now = Instant::now();
        Self {
            step: 0,
            began: now,
            drafted: now,
            planned: now,
            ran: now,
            ended: now,
            sequences: 0,
            prefill_tokens: 0,
            decode_tokens: 0,
            context_tokens: 0,
            draft_tokens: 0,
            accepted_tokens: 0,
            generated_tokens: 0,
            parts: Vec::new(),
        }
    }

    /// Adds a sequence, which has `drawn` new tokens, with its part if its receiver has a tag.
    pub(crate) fn add(
        &mut self,
        scheduled: &ScheduledSequence,
        part: Option<StepPart>,
        drawn: usize,
    ) {
        self.sequences += 1;
        // A sequence that decodes computes its newest token, and draft tokens.
        let decodes = scheduled.samples && scheduled.length == 1 + scheduled.drafts;
        let tokens = if decodes { &mut self.decode_tokens } else { &mut self.prefill_tokens };
        *tokens += scheduled.length;
        self.context_tokens += scheduled.start + scheduled.length;
        self.draft_tokens += scheduled.drafts;
        self.accepted_tokens += drawn.saturating_sub(1);
        self.generated_tokens += drawn;
        self.parts.extend(part.map(|part| StepPart { generated_tokens: drawn, ..part }));
    }

    /// Duration of the step.
    pub fn duration(&self) -> Duration {
        self.ended - self.began
    }
}

impl fmt::Debug for StepPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { choice, start, tokens, draft_tokens, generated_tokens, .. } = self;
        write!(f, "StepPart({choice}: {start}+{tokens}, {draft_tokens}, {generated_tokens})")
    }
}

//! A request in the engine: its sequences, its timings and the receiver of its events.

use std::{
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    error::RequestError,
    kv_cache::SequenceTokens,
    request::{
        Event, EventSink, Finish, FinishReason, PROMPT_LOGPROBS_CHUNK, Request, Resumed, Summary,
        Timings,
    },
    sampling::{Drawn, DrawnTokens, TokenLogprob, check_finite},
    scheduler::ScheduledSequence,
    sequence::Sequence,
    step_output::OutputRow,
    step_report::{StepPart, Tag},
    tokenizer::Tokenizer,
};

/// The sequences of one request.
pub struct SequenceGroup {
    request: Arc<Request>,
    /// Maximum length of each sequence in tokens, prompt included.
    longest: usize,
    /// Indexed by choice. Empty until the request is first scheduled, here or on another worker:
    /// until then there is only its prompt.
    sequences: Vec<Sequence>,
    /// Number of prompt tokens that were cached.
    cached_prompt_tokens: usize,
    completion_tokens: usize,
    /// Number of sequences that have not ended.
    unfinished: usize,
    /// Log probabilities of the prompt, if requested and not sent yet.
    prompt_logprobs: Option<Vec<TokenLogprob>>,
    sink: Box<dyn EventSink>,
    clock: RequestClock,
    /// Whether only its deadline ends the wait, not the estimate that it cannot be met.
    skips_estimate: bool,
    /// Whether a preemption was reported since the last token, indexed by choice.
    reported_preempted: Vec<bool>,
}

/// Status of a request after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupStatus {
    /// All sequences continue.
    Running,
    /// The sequence of the step has ended, others continue.
    SequenceEnded,
    /// All sequences have ended.
    Finished,
    /// The request failed, and the error was sent.
    Failed,
}

/// Timestamps and counters of a request.
struct RequestClock {
    arrived: Instant,
    scheduled: Option<Instant>,
    first_token: Option<Instant>,
    detokenize: Duration,
    /// The last step that it took part in.
    step: Option<u64>,
    steps: u32,
    preemptions: u32,
    drafted: u32,
    accepted: u32,
}

impl SequenceGroup {
    /// Creates the group of `request`, whose sequences have at most `longest` tokens each, prompt
    /// included. With `prompt_logprobs`, log probabilities of the prompt are sent before the first
    /// token.
    pub(crate) fn new(
        request: Request,
        longest: usize,
        prompt_logprobs: bool,
        sink: Box<dyn EventSink>,
    ) -> Self {
        let count = request.num_sequences.get() as usize;
        Self {
            unfinished: count,
            longest,
            sequences: Vec::new(),
            cached_prompt_tokens: 0,
            completion_tokens: 0,
            prompt_logprobs: prompt_logprobs.then(Vec::new),
            sink,
            clock: RequestClock::new(request.arrived),
            skips_estimate: false,
            reported_preempted: vec![false; count],
            request: Arc::new(request),
        }
    }

    /// Restores the state that another engine had reached. Returns the choices that continue and
    /// the number of tokens of each. Sequences at their end finish now. Nothing that the other
    /// engine has sent is sent again.
    pub(crate) fn resume(
        &mut self,
        resumed: Vec<Resumed>,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<(u32, usize)>, RequestError> {
        self.sequences = Sequence::all(&self.request, self.longest, tokenizer);
        let ended = resumed.iter().filter(|resumed| resumed.ended).count();
        self.unfinished -= ended.min(self.unfinished);
        self.completion_tokens = resumed.iter().map(|resumed| resumed.tokens.len()).sum();
        let mut open = Vec::new();
        for (choice, resumed) in (0..).zip(resumed).filter(|(_, resumed)| !resumed.ended) {
            let sequence = &mut self.sequences[choice as usize];
            match sequence.resume(resumed, tokenizer)? {
                None => open.push((choice, sequence.length())),
                Some(reason) => drop(self.end(choice, reason)),
            }
        }
        Ok(open)
    }

    /// Sends the error that ends the request.
    pub(crate) fn fail(&mut self, error: RequestError) {
        self.sink.send(Event::Failed(error));
    }

    /// Whether the receiver of its events is gone.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.sink.is_closed()
    }

    /// Time after which the response is of no use.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.request.deadline
    }

    /// Makes it wait until its deadline, even if that cannot be met according to the estimate.
    pub(crate) fn skip_estimate(&mut self) {
        self.skips_estimate = true;
    }

    /// Whether it waits until its deadline, whatever the estimate.
    pub(crate) fn skips_estimate(&self) -> bool {
        self.skips_estimate
    }

    /// Whether it has taken part in a step.
    pub(crate) fn was_scheduled(&self) -> bool {
        self.clock.scheduled.is_some()
    }

    /// Number of prompt tokens.
    pub(crate) fn prompt_tokens(&self) -> usize {
        self.request.prompt.len()
    }

    /// The prompt and the drawn tokens of one sequence.
    pub(crate) fn tokens(&self, choice: u32) -> SequenceTokens<'_> {
        let sequence = self.sequences.get(choice as usize);
        sequence.map_or_else(|| (&*self.request.prompt).into(), Sequence::tokens)
    }

    /// Builds the state of a sequence for the batch, unless it is there.
    pub(crate) fn enter(&mut self, choice: u32, tokenizer: &Tokenizer) {
        if self.sequences.is_empty() {
            self.sequences = Sequence::all(&self.request, self.longest, tokenizer);
        }
        if let Some(sequence) = self.sequences.get_mut(choice as usize) {
            sequence.enter(tokenizer);
        }
    }

    /// Records that it takes part in `step`, which starts at `now`.
    pub(crate) fn scheduled(&mut self, step: u64, now: Instant) {
        if self.clock.scheduled.is_none() {
            self.clock.scheduled = Some(now);
            self.sink.scheduled();
        }
        if self.clock.step.replace(step) != Some(step) {
            self.clock.steps += 1;
        }
    }

    /// Returns the part of a step for one of its sequences, before the step's tokens are drawn, if
    /// its receiver has a tag.
    pub(crate) fn step_part(&self, scheduled: &ScheduledSequence) -> Option<StepPart> {
        let tag: Tag = self.sink.tag()?;
        Some(StepPart {
            tag,
            choice: scheduled.id.choice,
            scheduled: self.clock.scheduled?,
            first_token: self.clock.first_token,
            start: scheduled.start,
            tokens: scheduled.length,
            draft_tokens: scheduled.drafts,
            generated_tokens: 0,
        })
    }

    /// Records that a sequence was preempted, and reports it once between two of its tokens: a slow
    /// receiver must not be sent more events than its channel holds.
    pub(crate) fn preempted(&mut self, choice: u32) {
        self.clock.preemptions += 1;
        if let Some(sequence) = self.sequences.get_mut(choice as usize) {
            sequence.leave();
        }
        if let Some(reported) = self.reported_preempted.get_mut(choice as usize)
            && !mem::replace(reported, true)
        {
            self.sink.send(Event::Preempted { choice });
        }
    }

    /// Records how many prompt tokens were cached.
    pub(crate) fn set_cached_prompt_tokens(&mut self, tokens: usize) {
        self.cached_prompt_tokens = tokens;
    }

    /// The choices of its sequences.
    pub(crate) fn choices(&self) -> std::ops::Range<u32> {
        0..self.request.num_sequences.get()
    }

    /// Returns a sequence, once the request was scheduled.
    pub(crate) fn sequence(&self, choice: u32) -> Option<&Sequence> {
        self.sequences.get(choice as usize)
    }

    /// Takes the results of a step: the prompt's logits rows, and the drawn tokens, one and one
    /// more for each accepted draft token. Sends the events, and returns the number of tokens drawn
    /// and the status.
    pub(crate) fn advance(
        &mut self,
        scheduled: &ScheduledSequence,
        prompt: &[OutputRow],
        drawn_tokens: DrawnTokens,
        tokenizer: &Tokenizer,
        now: Instant,
    ) -> (usize, GroupStatus) {
        let mut drawn = 0usize;
        let advance = || {
            self.record_prompt_logprobs(scheduled, prompt)?;
            // Counted before the last draw, which may end the request and report the total.
            self.clock.drafted += scheduled.drafts as u32;
            for draw in drawn_tokens {
                self.clock.accepted += u32::from(drawn > 0);
                let status = self.append(scheduled.id.choice, draw?, tokenizer, now);
                drawn += 1;
                if status != GroupStatus::Running {
                    return Ok(status);
                }
            }
            Ok(GroupStatus::Running)
        };
        let status = advance().unwrap_or_else(|error| {
            self.fail(error);
            GroupStatus::Failed
        });
        (drawn, status)
    }

    /// Stores log probabilities of prompt tokens. `rows` are the logits at the positions from
    /// `scheduled.start + scheduled.length - scheduled.logits` on.
    fn record_prompt_logprobs(
        &mut self,
        scheduled: &ScheduledSequence,
        rows: &[OutputRow],
    ) -> Result<(), RequestError> {
        let Some(logprobs) = &mut self.prompt_logprobs else { return Ok(()) };
        let first = scheduled.start + scheduled.length - scheduled.logits + 1;
        let tokens = self.request.prompt.get(first..).unwrap_or_default();
        for ((position, token), row) in (first..).zip(tokens).zip(rows) {
            // A device draws only after the last token of a sequence, which is not one of these.
            let OutputRow::Logits(row) = row else { continue };
            check_finite(row, position)?;
            logprobs.push(TokenLogprob::of(row, *token, self.request.logprobs.top));
        }
        Ok(())
    }

    /// Appends a token to a sequence, and ends it if a stop condition is met.
    fn append(
        &mut self,
        choice: u32,
        drawn: Drawn,
        tokenizer: &Tokenizer,
        now: Instant,
    ) -> GroupStatus {
        self.clock.first_token.get_or_insert(now);
        let began = Instant::now();
        let (token, reason) = self.sequences[choice as usize].append(drawn, tokenizer);
        self.clock.detokenize += began.elapsed();
        self.completion_tokens += 1;
        if let Some(reported) = self.reported_preempted.get_mut(choice as usize) {
            *reported = false;
        }
        self.send_prompt_logprobs();
        self.sink.send(Event::Token(token));
        reason.map_or(GroupStatus::Running, |reason| self.end(choice, reason))
    }

    /// Ends a sequence, and the request with the last one.
    fn end(&mut self, choice: u32, reason: FinishReason) -> GroupStatus {
        self.unfinished -= 1;
        let summary = (self.unfinished == 0).then(|| Summary {
            prompt_tokens: self.request.prompt.len(),
            cached_prompt_tokens: self.cached_prompt_tokens,
            completion_tokens: self.completion_tokens,
            timings: self.clock.timings(Instant::now()),
        });
        self.sink.send(Event::Finished(Finish { choice, reason, summary }));
        if self.unfinished == 0 { GroupStatus::Finished } else { GroupStatus::SequenceEnded }
    }

    /// Sends the log probabilities of the prompt once, if requested; for a prompt of one token, an
    /// empty event.
    fn send_prompt_logprobs(&mut self) {
        let Some(mut chunk) = self.prompt_logprobs.take() else { return };
        loop {
            let rest = chunk.split_off(chunk.len().min(PROMPT_LOGPROBS_CHUNK));
            self.sink.send(Event::PromptLogprobs(chunk));
            if rest.is_empty() {
                return;
            }
            chunk = rest;
        }
    }
}

impl RequestClock {
    fn new(arrived: Instant) -> Self {
        Self {
            arrived,
            scheduled: None,
            first_token: None,
            detokenize: Duration::ZERO,
            step: None,
            steps: 0,
            preemptions: 0,
            drafted: 0,
            accepted: 0,
        }
    }

    fn timings(&self, end: Instant) -> Timings {
        Timings {
            scheduled: self.scheduled.unwrap_or(end).max(self.arrived),
            first_token: self.first_token.unwrap_or(end),
            last_token: end,
            detokenize: self.detokenize,
            steps: self.steps,
            preemptions: self.preemptions,
            drafted: self.drafted,
            accepted: self.accepted,
        }
    }
}

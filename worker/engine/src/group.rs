//! One request on its way through the engine: its sequences, its clock, and who listens.

use std::{mem, sync::Arc, time::Instant};

use crate::{
    blocks::SequenceTokens,
    request::{
        Event, EventSink, Finish, FinishReason, PROMPT_PART, Request, RequestError, Resumed,
        Summary, Timings,
    },
    runner::OutputRow,
    sampling::{Drawn, DrawnTokens, TokenLogprob, check_finite},
    scheduler::ScheduledSequence,
    sequence::Sequence,
    tokenizer::Tokenizer,
};

/// The sequences of one request.
pub struct SequenceGroup {
    request: Arc<Request>,
    /// Tokens of each sequence at most, prompt included.
    longest: usize,
    /// By choice. None before the request has had a place in the batch, here or elsewhere: until then there is nothing but
    /// its prompt.
    sequences: Vec<Sequence>,
    /// Tokens of the prompt that the cache had.
    cached_prompt_tokens: usize,
    completion_tokens: usize,
    /// Sequences that have not ended.
    unfinished: usize,
    /// Those of the prompt, if they are wanted and not told yet.
    prompt_logprobs: Option<Vec<TokenLogprob>>,
    sink: Box<dyn EventSink>,
    clock: Clock,
    waits_to_the_end: bool,
    /// Whether a preemption was reported since the sequence's last token, by choice.
    reported_preempted: Vec<bool>,
}

/// Where a request stands after a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// All goes on.
    GoesOn,
    /// The slice's sequence has ended, others go on.
    SequenceEnded,
    /// Nothing is left to do.
    Over,
    /// The client was told why it cannot go on.
    Failed,
}

/// When things happened.
struct Clock {
    arrived: Instant,
    scheduled: Option<Instant>,
    first_token: Option<Instant>,
    /// The last step it took part in.
    step: Option<u64>,
    steps: u32,
    preemptions: u32,
    drafted: u32,
    accepted: u32,
}

impl SequenceGroup {
    /// `request`, whose sequences are at most `longest` tokens each, prompt included. With `tells_prompt`, log probabilities
    /// of the prompt come before the first token.
    pub(crate) fn new(
        request: Request,
        longest: usize,
        tells_prompt: bool,
        sink: Box<dyn EventSink>,
    ) -> Self {
        let count = request.num_sequences.get() as usize;
        Self {
            unfinished: count,
            longest,
            sequences: Vec::new(),
            cached_prompt_tokens: 0,
            completion_tokens: 0,
            prompt_logprobs: tells_prompt.then(Vec::new),
            sink,
            clock: Clock::new(request.arrived),
            waits_to_the_end: false,
            reported_preempted: vec![false; count],
            request: Arc::new(request),
        }
    }

    /// Takes what another engine has made, and answers the sequences that go on, with the tokens that each has. Those that
    /// had reached their end are over with this. What another engine has told of them is not told again.
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
                Some(reason) => drop(self.end(choice, reason, Instant::now())),
            }
        }
        Ok(open)
    }

    /// Says that the request cannot go on.
    pub(crate) fn fail(&mut self, failure: RequestError) {
        self.sink.send(Event::Failed(failure));
    }

    /// Whether nobody listens any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.sink.is_closed()
    }

    /// When its answer is of no use any more.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.request.deadline
    }

    /// From now on only its deadline ends it, not what seems likely before.
    pub(crate) fn wait_to_the_end(&mut self) {
        self.waits_to_the_end = true;
    }

    /// Whether it waits until its deadline, however little time is left.
    pub(crate) fn waits_to_the_end(&self) -> bool {
        self.waits_to_the_end
    }

    /// Whether it has had a place in the batch.
    pub(crate) fn has_begun(&self) -> bool {
        self.clock.scheduled.is_some()
    }

    /// Tokens of its prompt.
    pub(crate) fn prompt_tokens(&self) -> usize {
        self.request.prompt.len()
    }

    /// Prompt and everything drawn of one sequence.
    pub(crate) fn tokens(&self, choice: u32) -> SequenceTokens<'_> {
        let sequence = self.sequences.get(choice as usize);
        sequence.map_or_else(|| (&*self.request.prompt).into(), Sequence::tokens)
    }

    /// Prepares a sequence for the batch, unless it is in it.
    pub(crate) fn enter(&mut self, choice: u32, tokenizer: &Tokenizer) {
        if self.sequences.is_empty() {
            self.sequences = Sequence::all(&self.request, self.longest, tokenizer);
        }
        if let Some(sequence) = self.sequences.get_mut(choice as usize) {
            sequence.enter(tokenizer);
        }
    }

    /// Notes that it takes part in `step`, which begins now.
    pub(crate) fn scheduled(&mut self, step: u64, now: Instant) {
        if self.clock.scheduled.is_none() {
            self.clock.scheduled = Some(now);
            self.sink.scheduled();
        }
        if self.clock.step.replace(step) != Some(step) {
            self.clock.steps += 1;
        }
    }

    /// Notes that a sequence lost its blocks, and reports it once between two of its tokens: a reader that is slow must
    /// not be sent more events than its channel holds.
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

    /// Notes that the cache had so many tokens of the prompt.
    pub(crate) fn found(&mut self, tokens: usize) {
        self.cached_prompt_tokens = tokens;
    }

    /// Names its sequences.
    pub(crate) fn choices(&self) -> std::ops::Range<u32> {
        0..self.request.num_sequences.get()
    }

    /// A sequence, once there is more of it than the prompt.
    pub(crate) fn sequence(&self, choice: u32) -> Option<&Sequence> {
        self.sequences.get(choice as usize)
    }

    /// Takes what came of a slice: the rows after tokens of the prompt, and what was drawn, one token, and another one for
    /// each of the slice's drafts that is what was drawn. Tells the client, and answers how many were drawn.
    pub(crate) fn advance(
        &mut self,
        slice: &ScheduledSequence,
        prompt: &[OutputRow],
        drawn_tokens: DrawnTokens,
        tokenizer: &Tokenizer,
        now: Instant,
    ) -> (usize, Progress) {
        let mut drawn = 0usize;
        let advance = || {
            self.note_prompt(slice, prompt)?;
            // Counted before the last draw, which may be the end that tells of them.
            self.clock.drafted += slice.drafts as u32;
            for draw in drawn_tokens {
                self.clock.accepted += u32::from(drawn > 0);
                let progress = self.append(slice.id.choice, draw?, tokenizer, now);
                drawn += 1;
                if progress != Progress::GoesOn {
                    return Ok(progress);
                }
            }
            Ok(Progress::GoesOn)
        };
        let progress = advance().unwrap_or_else(|failure| {
            self.fail(failure);
            Progress::Failed
        });
        (drawn, progress)
    }

    /// Keeps how likely tokens of the prompt were. `rows` are the logits after the positions from
    /// `slice.start + slice.length - slice.logits` on.
    fn note_prompt(
        &mut self,
        slice: &ScheduledSequence,
        rows: &[OutputRow],
    ) -> Result<(), RequestError> {
        let Some(known) = &mut self.prompt_logprobs else { return Ok(()) };
        let first = slice.start + slice.length - slice.logits + 1;
        let tokens = self.request.prompt.get(first..).unwrap_or_default();
        for ((position, token), row) in (first..).zip(tokens).zip(rows) {
            // A device draws after the last token of a slice alone, and that is not one of these.
            let OutputRow::Logits(row) = row else { continue };
            check_finite(row, position)?;
            known.push(TokenLogprob::of(row, *token, self.request.logprobs.top));
        }
        Ok(())
    }

    /// A sequence is one token longer, and perhaps at its end.
    fn append(
        &mut self,
        choice: u32,
        drawn: Drawn,
        tokenizer: &Tokenizer,
        now: Instant,
    ) -> Progress {
        let (token, reason) = self.sequences[choice as usize].append(drawn, tokenizer);
        self.clock.first_token.get_or_insert(now);
        self.completion_tokens += 1;
        if let Some(reported) = self.reported_preempted.get_mut(choice as usize) {
            *reported = false;
        }
        self.tell_prompt();
        self.sink.send(Event::Token(token));
        reason.map_or(Progress::GoesOn, |reason| self.end(choice, reason, now))
    }

    /// A sequence has ended, and perhaps the request.
    fn end(&mut self, choice: u32, reason: FinishReason, now: Instant) -> Progress {
        self.unfinished -= 1;
        let summary = (self.unfinished == 0).then(|| Summary {
            prompt_tokens: self.request.prompt.len(),
            cached_prompt_tokens: self.cached_prompt_tokens,
            completion_tokens: self.completion_tokens,
            timings: self.clock.timings(now),
        });
        self.sink.send(Event::Finished(Finish { choice, reason, summary }));
        if self.unfinished == 0 { Progress::Over } else { Progress::SequenceEnded }
    }

    /// Once, and even if there is nothing to tell of a prompt of one token: it was asked for.
    fn tell_prompt(&mut self) {
        let Some(mut left) = self.prompt_logprobs.take() else { return };
        loop {
            let rest = left.split_off(left.len().min(PROMPT_PART));
            self.sink.send(Event::PromptLogprobs(left));
            if rest.is_empty() {
                return;
            }
            left = rest;
        }
    }
}

impl Clock {
    fn new(arrived: Instant) -> Self {
        Self {
            arrived,
            scheduled: None,
            first_token: None,
            step: None,
            steps: 0,
            preemptions: 0,
            drafted: 0,
            accepted: 0,
        }
    }

    fn timings(&self, end: Instant) -> Timings {
        let scheduled = self.scheduled.unwrap_or(end);
        let first_token = self.first_token.unwrap_or(end);
        Timings {
            queue: scheduled.saturating_duration_since(self.arrived),
            prefill: first_token - scheduled,
            decode: end - first_token,
            steps: self.steps,
            preemptions: self.preemptions,
            drafted: self.drafted,
            accepted: self.accepted,
        }
    }
}

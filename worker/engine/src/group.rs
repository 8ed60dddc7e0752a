//! One request on its way through the engine: its sequences, its clock, and who listens.

use std::time::Instant;

use stoker_ops::draw::Draw;

use crate::{
    request::{
        Event, Failure, Finish, FinishReason, PROMPT_PART, Request, Resumed, Sink, Summary, Timings,
    },
    runner::Row,
    sampling::{TokenLogprob, check_finite},
    scheduler::Slice,
    sequence::Sequence,
    tokenizer::Tokenizer,
};

/// The sequences of one request.
pub struct SequenceGroup {
    /// By choice.
    sequences: Vec<Sequence>,
    prompt_tokens: usize,
    /// Of these, the ones that the cache had.
    cached_prompt_tokens: usize,
    completion_tokens: usize,
    /// Sequences that have not ended.
    unfinished: usize,
    /// Candidates beside each log probability.
    top: usize,
    /// Those of the prompt, if they are wanted and not told yet.
    prompt_logprobs: Option<Vec<TokenLogprob>>,
    sink: Box<dyn Sink>,
    clock: Clock,
    /// Its answer is of no use after this.
    deadline: Option<Instant>,
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
    /// The sequences of `request`, at most `longest` tokens each, prompt included, where they stand. What another engine
    /// has told of them is not told again.
    pub(crate) fn new(
        request: &Request,
        longest: usize,
        tokenizer: &Tokenizer,
        sink: Box<dyn Sink>,
    ) -> Self {
        let sequences: Vec<_> = (0..request.num_sequences.get())
            .map(|choice| Sequence::new(request, choice, longest, tokenizer))
            .collect();
        let reported_preempted = vec![false; sequences.len()];
        let ended = request.resumed.iter().filter(|resumed| resumed.ended).count();
        Self {
            unfinished: sequences.len() - ended.min(sequences.len()),
            sequences,
            prompt_tokens: request.prompt.len(),
            cached_prompt_tokens: 0,
            completion_tokens: request.resumed.iter().map(|resumed| resumed.tokens.len()).sum(),
            top: request.logprobs.top,
            prompt_logprobs: request.tells_prompt().then(Vec::new),
            sink,
            clock: Clock::new(request.arrived),
            deadline: request.deadline,
            waits_to_the_end: false,
            reported_preempted,
        }
    }

    /// Takes what another engine has made, and answers the sequences that go on, with the tokens that each has. Those that
    /// had reached their end are over with this.
    pub(crate) fn resume(
        &mut self,
        resumed: &[Resumed],
        tokenizer: &Tokenizer,
    ) -> Result<Vec<(u32, usize)>, Failure> {
        let mut open = Vec::new();
        for (choice, resumed) in (0..).zip(resumed).filter(|(_, resumed)| !resumed.ended) {
            let sequence = &mut self.sequences[choice as usize];
            match sequence.resume(resumed, tokenizer)? {
                None => open.push((choice, sequence.tokens().len())),
                Some(reason) => drop(self.end(choice, reason, Instant::now())),
            }
        }
        Ok(open)
    }

    /// Says that the request cannot go on.
    pub(crate) fn fail(&mut self, failure: Failure) {
        self.sink.send(Event::Failed(failure));
    }

    /// Whether nobody listens any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.sink.is_closed()
    }

    /// When its answer is of no use any more.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
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
        self.prompt_tokens
    }

    /// Prompt and everything drawn of one sequence.
    pub(crate) fn tokens(&self, choice: u32) -> &[u32] {
        self.sequences[choice as usize].tokens()
    }

    /// Notes that it takes part in `step`, which begins now.
    pub(crate) fn scheduled(&mut self, step: u64, now: Instant) {
        self.clock.scheduled.get_or_insert(now);
        if self.clock.step.replace(step) != Some(step) {
            self.clock.steps += 1;
        }
    }

    /// Notes that a sequence lost its blocks, and reports it once between two of its tokens: a reader that is slow must
    /// not be sent more events than its channel holds.
    pub(crate) fn preempted(&mut self, choice: u32) {
        self.clock.preemptions += 1;
        if let Some(reported) = self.reported_preempted.get_mut(choice as usize)
            && !std::mem::replace(reported, true)
        {
            self.sink.send(Event::Preempted { choice });
        }
    }

    /// Notes that the cache had so many tokens of the prompt.
    pub(crate) fn found(&mut self, tokens: usize) {
        self.cached_prompt_tokens = tokens;
    }

    /// How a device may draw the next tokens of a sequence, one after each of so many drafts and one before, if it may.
    pub(crate) fn on_device(&self, choice: u32, drafts: usize, vocab: usize) -> Option<Vec<Draw>> {
        self.sequences[choice as usize].on_device(drafts, vocab)
    }

    /// Names its sequences.
    pub(crate) fn choices(&self) -> std::ops::Range<u32> {
        0..self.sequences.len() as u32
    }

    /// A sequence, to propose what may follow.
    pub(crate) fn sequence(&self, choice: u32) -> &Sequence {
        &self.sequences[choice as usize]
    }

    /// Takes the rows that a slice wanted, and tells the client what comes of them: one token, and another one for each of
    /// the slice's `drafts` that is what was drawn. Answers how many were drawn.
    pub(crate) fn advance(
        &mut self,
        slice: &Slice,
        drafts: &[u32],
        rows: &[Row],
        tokenizer: &Tokenizer,
        now: Instant,
    ) -> (usize, Progress) {
        let to_draw = if slice.samples { 1 + drafts.len() } else { 0 };
        let (prompt, sampled) = rows.split_at(rows.len().saturating_sub(to_draw));
        let mut drawn = 0usize;
        let mut advance = || {
            self.note_prompt(slice, prompt)?;
            // Counted before the last draw, which may be the end that tells of them.
            self.clock.drafted += drafts.len() as u32;
            let guesses = drafts.iter().map(|id| Some(*id)).chain([None]);
            for (row, guess) in sampled.iter().zip(guesses) {
                self.clock.accepted += u32::from(drawn > 0);
                let (id, progress) = self.draw(slice.id.choice, *row, tokenizer, now)?;
                drawn += 1;
                // The next row is what follows the guess, which is nobody's unless it was right.
                if progress != Progress::GoesOn || guess != Some(id) {
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
    fn note_prompt(&mut self, slice: &Slice, rows: &[Row]) -> Result<(), Failure> {
        let Some(known) = &mut self.prompt_logprobs else { return Ok(()) };
        let tokens = self.sequences[slice.id.choice as usize].tokens();
        let first = slice.start + slice.length - slice.logits + 1;
        for (position, row) in (first..).zip(rows) {
            // A device draws after the last token of a slice alone, and that is not one of these.
            let Row::Logits(row) = row else { continue };
            check_finite(row, position)?;
            known.push(TokenLogprob::of(row, tokens[position], self.top));
        }
        Ok(())
    }

    fn draw(
        &mut self,
        choice: u32,
        row: Row,
        tokenizer: &Tokenizer,
        now: Instant,
    ) -> Result<(u32, Progress), Failure> {
        let (token, reason) = self.sequences[choice as usize].draw(row, tokenizer)?;
        let id = token.id;
        self.clock.first_token.get_or_insert(now);
        self.completion_tokens += 1;
        if let Some(reported) = self.reported_preempted.get_mut(choice as usize) {
            *reported = false;
        }
        self.tell_prompt();
        self.sink.send(Event::Token(token));
        Ok((id, reason.map_or(Progress::GoesOn, |reason| self.end(choice, reason, now))))
    }

    /// A sequence has ended, and perhaps the request.
    fn end(&mut self, choice: u32, reason: FinishReason, now: Instant) -> Progress {
        self.unfinished -= 1;
        let summary = (self.unfinished == 0).then(|| Summary {
            prompt_tokens: self.prompt_tokens,
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
            self.sink.send(Event::Prompt(left));
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

//! One request on its way through the engine.

use std::time::Instant;

use crate::{
    emit::{Emitted, Emitter},
    request::{Event, Finish, FinishReason, Request, Sink, Timings},
    sampling::Sampling,
    tokenizer::Tokenizer,
};

/// A request, what was generated for it, and who listens.
pub struct Sequence {
    /// Prompt, then everything drawn.
    pub tokens: Vec<u32>,
    /// How to draw.
    pub sampling: Sampling,
    prompt_tokens: usize,
    /// Length at which it ends.
    longest: usize,
    stop_ids: Vec<u32>,
    include_stop: bool,
    emitter: Emitter,
    sink: Box<dyn Sink>,
    clock: Clock,
}

/// When things happened.
struct Clock {
    arrived: Instant,
    scheduled: Option<Instant>,
    first_token: Option<Instant>,
    steps: u32,
    preemptions: u32,
}

impl Sequence {
    /// A sequence of at most `longest` tokens, prompt included.
    pub(crate) fn new(
        request: Request,
        longest: usize,
        tokenizer: &Tokenizer,
        sink: Box<dyn Sink>,
    ) -> Self {
        let Request { prompt, sampling, stopping, arrived } = request;
        let mut stop_ids = stopping.token_ids;
        if !stopping.ignore_eos {
            stop_ids.extend_from_slice(tokenizer.eos_ids());
        }
        let include_stop = stopping.include_stop;
        let emitter = Emitter::new(tokenizer, &prompt, stopping.strings, include_stop);
        let clock = Clock { arrived, scheduled: None, first_token: None, steps: 0, preemptions: 0 };
        Self {
            prompt_tokens: prompt.len(),
            tokens: prompt,
            sampling,
            longest,
            stop_ids,
            include_stop,
            emitter,
            sink,
            clock,
        }
    }

    /// Whether nobody listens any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.sink.is_closed()
    }

    /// Notes that it takes part in a step that begins now.
    pub(crate) fn scheduled(&mut self, now: Instant) {
        self.clock.scheduled.get_or_insert(now);
        self.clock.steps += 1;
    }

    /// Notes that it lost its blocks.
    pub(crate) fn preempted(&mut self) {
        self.clock.preemptions += 1;
    }

    /// Takes a drawn token and tells the client. True if the sequence has ended.
    pub(crate) fn push(&mut self, id: u32, tokenizer: &Tokenizer, now: Instant) -> bool {
        self.clock.first_token.get_or_insert(now);
        self.tokens.push(id);
        let stopped = self.stop_ids.contains(&id);
        let emitted = if stopped && !self.include_stop {
            Emitted::default()
        } else {
            self.emitter.push(tokenizer, id)
        };
        let reason = match emitted.stop {
            Some(stop) => Some(FinishReason::StopString(stop)),
            None if stopped => Some(FinishReason::StopToken(id)),
            None if self.tokens.len() >= self.longest => Some(FinishReason::Length),
            None => None,
        };
        let mut text = emitted.text;
        if matches!(reason, Some(FinishReason::StopToken(_) | FinishReason::Length)) {
            text.push_str(&self.emitter.finish());
        }
        self.sink.send(Event::Token { ids: vec![id], text });
        if let Some(reason) = reason {
            self.sink.send(Event::Finished(Finish {
                reason,
                prompt_tokens: self.prompt_tokens,
                completion_tokens: self.tokens.len() - self.prompt_tokens,
                timings: self.clock.timings(now),
            }));
            return true;
        }
        false
    }

    /// Tells the client that it cannot go on.
    pub(crate) fn fail(&mut self, failure: crate::request::Failure) {
        self.sink.send(Event::Failed(failure));
    }
}

impl Clock {
    fn timings(&self, end: Instant) -> Timings {
        let scheduled = self.scheduled.unwrap_or(end);
        let first_token = self.first_token.unwrap_or(end);
        Timings {
            queue: scheduled.saturating_duration_since(self.arrived),
            prefill: first_token - scheduled,
            decode: end - first_token,
            steps: self.steps,
            preemptions: self.preemptions,
        }
    }
}

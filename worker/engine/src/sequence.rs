//! One completion of a prompt: its tokens, its sampler and its stop conditions.
//!
//! State that grows with the prompt or the vocabulary exists only while the sequence is in the
//! batch, so that a waiting request holds little more than its shared prompt. That state is rebuilt
//! from the prompt and the drawn tokens, so a preempted sequence continues as if it had not been
//! preempted.

use std::sync::Arc;

use stoker_ops::draw::Draw;

use crate::{
    emit::{Emitted, Emitter},
    error::RequestError,
    kv_cache::SequenceTokens,
    request::{FinishReason, Request, Resumed, Token},
    sampling::{Drawn, Draws, Sampler, Sampling},
    step_output::OutputRow,
    tokenizer::Tokenizer,
};

/// A prompt and the tokens drawn after it.
pub struct Sequence {
    request: Arc<Request>,
    choice: u32,
    /// Maximum length in tokens, prompt included.
    longest: usize,
    emitter: Emitter,
    state: State,
}

/// State of a sequence.
enum State {
    /// While it waits: the drawn tokens.
    Waiting(Vec<u32>),
    /// While it is in the batch.
    Batched {
        /// The prompt, then the drawn tokens.
        tokens: Vec<u32>,
        sampler: Box<Sampler>,
    },
}

impl Sequence {
    /// Creates all sequences of a request, each of at most `longest` tokens, prompt included.
    pub(crate) fn all(request: &Arc<Request>, longest: usize, tokenizer: &Tokenizer) -> Vec<Self> {
        let stopping = &request.stopping;
        let (stops, include_stop) = (stopping.strings.clone(), stopping.include_stop);
        let emitter = Emitter::new(tokenizer, &request.prompt, stops, include_stop);
        let sequence = |choice| Self {
            request: Arc::clone(request),
            choice,
            longest,
            emitter: emitter.clone(),
            state: State::Waiting(Vec::new()),
        };
        (0..request.num_sequences.get()).map(sequence).collect()
    }

    /// Builds the state for the batch, unless it is there.
    pub(crate) fn enter(&mut self, tokenizer: &Tokenizer) {
        if let State::Waiting(drawn) = &self.state {
            let tokens = [&self.request.prompt, drawn.as_slice()].concat();
            let sampler = Box::new(self.new_sampler(drawn, tokenizer));
            self.state = State::Batched { tokens, sampler };
        }
    }

    /// Drops the state that is not needed while waiting.
    pub(crate) fn leave(&mut self) {
        if let State::Batched { tokens, .. } = &self.state {
            let drawn = tokens.get(self.request.prompt.len()..).unwrap_or_default();
            self.state = State::Waiting(drawn.to_vec());
        }
    }

    /// Creates the sampler of the token after the prompt and `drawn`.
    fn new_sampler(&self, drawn: &[u32], tokenizer: &Tokenizer) -> Sampler {
        let Request { prompt, sampling, adjustments, stopping, logprobs, .. } = &*self.request;
        let mut stop_ids = stopping.token_ids.clone();
        if !stopping.ignore_eos {
            stop_ids.extend_from_slice(tokenizer.eos_ids());
        }
        let mut sampler = Sampler::new(
            Sampling { choice: sampling.choice + self.choice, ..*sampling },
            adjustments.clone(),
            *logprobs,
            prompt,
            stop_ids,
            self.min_length(),
        );
        drawn.iter().for_each(|id| sampler.push(*id));
        sampler
    }

    /// Length in tokens up to which stop conditions do not apply.
    fn min_length(&self) -> usize {
        self.request.prompt.len().saturating_add(self.request.stopping.min_tokens)
    }

    /// The prompt, then the drawn tokens.
    pub fn tokens(&self) -> SequenceTokens<'_> {
        match &self.state {
            State::Waiting(drawn) => SequenceTokens::new(&self.request.prompt, drawn),
            State::Batched { tokens, .. } => tokens.into(),
        }
    }

    /// Number of tokens, prompt included.
    pub fn length(&self) -> usize {
        match &self.state {
            State::Waiting(drawn) => self.request.prompt.len() + drawn.len(),
            State::Batched { tokens, .. } => tokens.len(),
        }
    }

    /// The prompt and the drawn tokens in one slice, and the sampler. `None` while it waits.
    pub(crate) fn batched(&self) -> Option<(&[u32], &Sampler)> {
        match &self.state {
            State::Waiting(_) => None,
            State::Batched { tokens, sampler } => Some((tokens, sampler)),
        }
    }

    /// Maximum number of useful draft tokens: with all of them and one more token, it has its
    /// maximum length.
    pub(crate) fn max_drafts(&self) -> usize {
        self.longest.saturating_sub(self.length() + 1)
    }

    /// How the device draws the next token and those after each of `drafts` draft tokens, if it
    /// can.
    pub(crate) fn on_device(&self, drafts: usize, vocab: usize) -> Option<Vec<Draw>> {
        let (tokens, sampler) = self.batched()?;
        let next = tokens.len();
        (next..=next + drafts).map(|position| sampler.on_device(position, vocab)).collect()
    }

    /// The draws of the next tokens from `rows`. `None` while it waits.
    pub(crate) fn draws<'a>(
        &'a self,
        rows: Vec<OutputRow<'a>>,
        drafts: &'a [u32],
    ) -> Option<Draws<'a>> {
        let (tokens, sampler) = self.batched()?;
        Some(Draws { sampler, position: tokens.len(), rows, drafts })
    }

    /// Takes tokens that another engine has drawn and sent. Returns a reason if the sequence ended
    /// with the last of them.
    pub(crate) fn resume(
        &mut self,
        resumed: Resumed,
        tokenizer: &Tokenizer,
    ) -> Result<Option<FinishReason>, RequestError> {
        let (choice, tokens, sent) = (self.choice, resumed.tokens.len(), resumed.text_bytes);
        let (mut text, mut end) = (0, None);
        for (i, id) in resumed.tokens.iter().enumerate() {
            if end.is_some() {
                return Err(RequestError::TokensAfterEnd { choice, end: i, tokens });
            }
            let (token, reason) = self.append(Drawn { id: *id, logprob: None }, tokenizer);
            text += token.text.len();
            end = reason;
        }
        if text == sent {
            Ok(end)
        } else {
            Err(RequestError::ResumeTextMismatch { choice, tokens, text, sent })
        }
    }

    /// Takes a drawn token. Returns a reason if the sequence has ended.
    pub(crate) fn append(
        &mut self,
        drawn: Drawn,
        tokenizer: &Tokenizer,
    ) -> (Token, Option<FinishReason>) {
        let Drawn { id, logprob } = drawn;
        match &mut self.state {
            State::Waiting(drawn) => drawn.push(id),
            State::Batched { tokens, sampler } => {
                tokens.push(id);
                sampler.push(id);
            }
        }
        let stopping = &self.request.stopping;
        let may_stop = self.length() > self.min_length();
        let ends_text = |id: &u32| {
            let is_eos = !stopping.ignore_eos && tokenizer.eos_ids().contains(id);
            is_eos || stopping.token_ids.contains(id)
        };
        let stopped = may_stop && ends_text(&id);
        let emitted = if stopped && !stopping.include_stop {
            Emitted::default()
        } else if may_stop {
            self.emitter.push(tokenizer, id)
        } else {
            Emitted { text: self.emitter.push_unmatched(tokenizer, id), stop: None }
        };
        let reason = match emitted.stop {
            Some(stop) => Some(FinishReason::StopString(stop)),
            None if stopped => Some(FinishReason::StopToken(id)),
            None if self.length() >= self.longest => Some(FinishReason::Length),
            None => None,
        };
        let mut text = emitted.text;
        if matches!(reason, Some(FinishReason::StopToken(_) | FinishReason::Length)) {
            text.push_str(&self.emitter.finish());
        }
        (Token { choice: self.choice, id, text, logprob }, reason)
    }
}

//! One continuation of a prompt: its tokens, how the next is drawn, and when it ends.
//!
//! What grows with the prompt or the vocabulary is there only while the sequence is in the batch, so that those who wait
//! hold little more than the prompt that the sequences of a request share. It is made of the prompt and what was
//! drawn, so a sequence that was preempted continues as if it had not been.

use std::sync::Arc;

use stoker_ops::draw::Draw;

use crate::{
    blocks::SequenceTokens,
    emit::{Emitted, Emitter},
    request::{FinishReason, Request, RequestError, Resumed, Token},
    runner::OutputRow,
    sampling::{Drawn, Draws, Sampler, Sampling},
    tokenizer::Tokenizer,
};

/// A prompt, and what is generated after it.
pub struct Sequence {
    request: Arc<Request>,
    choice: u32,
    /// Length at which it ends.
    longest: usize,
    emitter: Emitter,
    state: State,
}

/// What there is of a sequence.
enum State {
    /// While it waits: everything drawn.
    Waiting(Vec<u32>),
    /// While it is in the batch.
    Batched {
        /// Prompt, then everything drawn.
        tokens: Vec<u32>,
        sampler: Box<Sampler>,
    },
}

impl Sequence {
    /// All continuations of a request, none longer than `longest` tokens with the prompt.
    pub(crate) fn all(request: &Arc<Request>, longest: usize, tokenizer: &Tokenizer) -> Vec<Self> {
        let stopping = &request.stopping;
        let (stops, include_stop) = (stopping.strings.clone(), stopping.include_stop);
        let emitter = Emitter::new(tokenizer, &request.prompt, stops, include_stop);
        let continuation = |choice| Self {
            request: Arc::clone(request),
            choice,
            longest,
            emitter: emitter.clone(),
            state: State::Waiting(Vec::new()),
        };
        (0..request.num_sequences.get()).map(continuation).collect()
    }

    /// Prepares for the batch, unless it is in it.
    pub(crate) fn enter(&mut self, tokenizer: &Tokenizer) {
        if let State::Waiting(drawn) = &self.state {
            let tokens = [&self.request.prompt, drawn.as_slice()].concat();
            let sampler = Box::new(self.new_sampler(drawn, tokenizer));
            self.state = State::Batched { tokens, sampler };
        }
    }

    /// Gives up what it does not need while it waits.
    pub(crate) fn leave(&mut self) {
        if let State::Batched { tokens, .. } = &self.state {
            let drawn = tokens.get(self.request.prompt.len()..).unwrap_or_default();
            self.state = State::Waiting(drawn.to_vec());
        }
    }

    /// Draws what follows the prompt and everything drawn.
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
            self.shortest(),
        );
        drawn.iter().for_each(|id| sampler.push(*id));
        sampler
    }

    /// Length from which on it may end before it is as long as it may become.
    fn shortest(&self) -> usize {
        self.request.prompt.len().saturating_add(self.request.stopping.min_tokens)
    }

    /// Prompt, then everything drawn.
    pub fn tokens(&self) -> SequenceTokens<'_> {
        match &self.state {
            State::Waiting(drawn) => SequenceTokens::new(&self.request.prompt, drawn),
            State::Batched { tokens, .. } => tokens.into(),
        }
    }

    /// How many.
    pub fn length(&self) -> usize {
        match &self.state {
            State::Waiting(drawn) => self.request.prompt.len() + drawn.len(),
            State::Batched { tokens, .. } => tokens.len(),
        }
    }

    /// Prompt and everything drawn, in one piece, and how the next token is drawn. None while it waits.
    pub(crate) fn batched(&self) -> Option<(&[u32], &Sampler)> {
        match &self.state {
            State::Waiting(_) => None,
            State::Batched { tokens, sampler } => Some((tokens, sampler)),
        }
    }

    /// Drafts that may be of use: with all of them, and one token more, it is as long as it may become.
    pub(crate) fn room(&self) -> usize {
        self.longest.saturating_sub(self.length() + 1)
    }

    /// How a device may draw the next token and those after so many drafts, if it may.
    pub(crate) fn on_device(&self, drafts: usize, vocab: usize) -> Option<Vec<Draw>> {
        let (tokens, sampler) = self.batched()?;
        let next = tokens.len();
        (next..=next + drafts).map(|position| sampler.on_device(position, vocab)).collect()
    }

    /// The rows to draw the next tokens from, none while it waits.
    pub(crate) fn draws<'a>(
        &'a self,
        rows: Vec<OutputRow<'a>>,
        drafts: &'a [u32],
    ) -> Option<Draws<'a>> {
        let (tokens, sampler) = self.batched()?;
        Some(Draws { sampler, position: tokens.len(), rows, drafts })
    }

    /// Takes tokens that another engine drew, and has told. With a reason, the sequence ended with the last of them.
    pub(crate) fn resume(
        &mut self,
        resumed: Resumed,
        tokenizer: &Tokenizer,
    ) -> Result<Option<FinishReason>, RequestError> {
        let (choice, tokens, told) = (self.choice, resumed.tokens.len(), resumed.text_bytes);
        let (mut text, mut end) = (0, None);
        for (i, id) in resumed.tokens.iter().enumerate() {
            if end.is_some() {
                return Err(RequestError::Ended { choice, end: i, tokens });
            }
            let (token, reason) = self.append(Drawn { id: *id, logprob: None }, tokenizer);
            text += token.text.len();
            end = reason;
        }
        if text == told {
            Ok(end)
        } else {
            Err(RequestError::NotItsText { choice, tokens, text, told })
        }
    }

    /// Takes the token that was drawn. With a reason, the sequence has ended.
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
        let may_stop = self.length() > self.shortest();
        let ends_text = |id: &u32| {
            let of_model = !stopping.ignore_eos && tokenizer.eos_ids().contains(id);
            of_model || stopping.token_ids.contains(id)
        };
        let stopped = may_stop && ends_text(&id);
        let emitted = if stopped && !stopping.include_stop {
            Emitted::default()
        } else if may_stop {
            self.emitter.push(tokenizer, id)
        } else {
            Emitted { text: self.emitter.pass(tokenizer, id), stop: None }
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

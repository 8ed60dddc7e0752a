//! One continuation of a prompt: its tokens, how the next is drawn, and when it ends.

use stoker_ops::draw::Draw;

use crate::{
    emit::{Emitted, Emitter},
    request::{Failure, FinishReason, Request, Resumed, Token},
    runner::Row,
    sampling::{Drawn, Sampler, Sampling, TokenLogprob},
    tokenizer::Tokenizer,
};

/// A prompt, and what is generated after it.
pub struct Sequence {
    choice: u32,
    /// Prompt, then everything drawn.
    tokens: Vec<u32>,
    /// Length at which it ends.
    longest: usize,
    /// Length from which on it may end otherwise.
    shortest: usize,
    stop_ids: Vec<u32>,
    include_stop: bool,
    sampler: Sampler,
    emitter: Emitter,
}

impl Sequence {
    /// The continuation `choice` of a request, at most `longest` tokens with the prompt.
    pub(crate) fn new(
        request: &Request,
        choice: u32,
        longest: usize,
        tokenizer: &Tokenizer,
    ) -> Self {
        let Request { prompt, sampling, stopping, .. } = request;
        let mut stop_ids = stopping.token_ids.clone();
        if !stopping.ignore_eos {
            stop_ids.extend_from_slice(tokenizer.eos_ids());
        }
        let shortest = prompt.len().saturating_add(stopping.min_tokens);
        let sampler = Sampler::new(
            Sampling { choice: sampling.choice + choice, ..*sampling },
            request.adjustments.clone(),
            request.logprobs,
            prompt,
            stop_ids.clone(),
            shortest,
        );
        let include_stop = stopping.include_stop;
        let emitter = Emitter::new(tokenizer, prompt, stopping.strings.clone(), include_stop);
        Self {
            choice,
            tokens: prompt.clone(),
            longest,
            shortest,
            stop_ids,
            include_stop,
            sampler,
            emitter,
        }
    }

    /// Prompt, then everything drawn.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How the next token is drawn.
    pub(crate) fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// Drafts that may be of use: with all of them, and one token more, it is as long as it may become.
    pub(crate) fn room(&self) -> usize {
        self.longest.saturating_sub(self.tokens.len() + 1)
    }

    /// How a device may draw the next token and those after so many drafts, if it may.
    pub(crate) fn on_device(&self, drafts: usize, vocab: usize) -> Option<Vec<Draw>> {
        let next = self.tokens.len();
        (next..=next + drafts).map(|position| self.sampler.on_device(position, vocab)).collect()
    }

    /// Draws the next token from its row. With a reason, the sequence has ended.
    pub(crate) fn draw(
        &mut self,
        row: Row,
        tokenizer: &Tokenizer,
    ) -> Result<(Token, Option<FinishReason>), Failure> {
        let Drawn { id, logprob } = self.sampler.draw(row, self.tokens.len())?;
        Ok(self.append(id, logprob, tokenizer))
    }

    /// Takes tokens that another engine drew, and has told. With a reason, the sequence ended with the last of them.
    pub(crate) fn resume(
        &mut self,
        resumed: &Resumed,
        tokenizer: &Tokenizer,
    ) -> Result<Option<FinishReason>, Failure> {
        let (choice, tokens, told) = (self.choice, resumed.tokens.len(), resumed.text_bytes);
        let (mut text, mut end) = (0, None);
        for (i, id) in resumed.tokens.iter().enumerate() {
            if end.is_some() {
                return Err(Failure::Ended { choice, end: i, tokens });
            }
            self.sampler.push(*id);
            let (token, reason) = self.append(*id, None, tokenizer);
            text += token.text.len();
            end = reason;
        }
        if text == told { Ok(end) } else { Err(Failure::NotItsText { choice, tokens, text, told }) }
    }

    /// The sequence is one token longer.
    fn append(
        &mut self,
        id: u32,
        logprob: Option<TokenLogprob>,
        tokenizer: &Tokenizer,
    ) -> (Token, Option<FinishReason>) {
        self.tokens.push(id);
        let may_stop = self.tokens.len() > self.shortest;
        let stopped = may_stop && self.stop_ids.contains(&id);
        let emitted = if stopped && !self.include_stop {
            Emitted::default()
        } else if may_stop {
            self.emitter.push(tokenizer, id)
        } else {
            Emitted { text: self.emitter.pass(tokenizer, id), stop: None }
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
        (Token { choice: self.choice, id, text, logprob }, reason)
    }
}

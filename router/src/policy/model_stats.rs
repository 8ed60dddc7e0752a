//! What the answers of a model have taught: how many bytes a token has, and how long answers are.

use std::sync::atomic::{AtomicUsize, Ordering};

use stoker_proto::v1::{GenerateRequest, Resume, Stopping, generate_request::Input};

use super::prompt;
use crate::{call::continuations, ewma::Ewma};

/// Of English, before anything was stats.
const BYTES_PER_TOKEN: f32 = 4.0;
/// Tokens to expect from a request that does not limit them, before anything was stats.
const USUAL_ANSWER: u64 = 256;
/// How much one answer teaches.
const WEIGHT: f32 = 1.0 / 16.0;
/// A prompt of so many tokens teaches half of what a very long one does: templates add to short ones.
const HALF_TAUGHT: f32 = 512.0;

/// What is known of one model.
#[derive(Debug)]
pub(crate) struct ModelStats {
    bytes_per_token: Ewma,
    /// Tokens of an answer that was free to end where it wanted.
    answer: Ewma,
    /// The part of a prompt unknown here that was in the cache of the worker where another router would send it.
    pub(crate) remote_hit_rate: Ewma,
    /// Whose turn it is.
    turn: AtomicUsize,
}

/// What a request will take, in tokens, as far as somebody without a tokenizer can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestCost {
    /// To read: the prompt, and what a continuation elsewhere has made already.
    pub(crate) prompt: u64,
    /// To make, for each continuation.
    pub(crate) completions: Vec<u64>,
}

impl RequestCost {
    /// The same where a prompt and its answer have that many tokens at most; 0 is any number.
    pub(crate) fn within(mut self, context_length: u32) -> Self {
        if context_length > 0 {
            // Many ask for far more than there is room for.
            for answer in &mut self.completions {
                *answer = (*answer).min(context_length.into());
            }
        }
        self
    }
}

impl Default for ModelStats {
    fn default() -> Self {
        Self {
            bytes_per_token: Ewma::with_initial(BYTES_PER_TOKEN),
            answer: Ewma::unknown(),
            remote_hit_rate: Ewma::with_initial(0.0),
            turn: AtomicUsize::default(),
        }
    }
}

impl ModelStats {
    /// Counts the turns of this model's workers.
    pub(crate) fn turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Tokens in that many bytes of a prompt.
    pub(crate) fn tokens(&self, request: &GenerateRequest, bytes: u64) -> u64 {
        let per_token = match &request.input {
            Some(Input::TokenIds(_)) => size_of::<u32>() as f32,
            _ => self.bytes_per_token.get().unwrap_or(BYTES_PER_TOKEN),
        };
        (bytes as f32 / per_token).ceil() as u64
    }

    /// Tokens of an answer that nobody knows anything about.
    pub(crate) fn usual_answer(&self) -> u64 {
        self.answer.get().map_or(USUAL_ANSWER, |tokens| tokens as u64)
    }

    /// What `request` will take.
    pub(crate) fn estimate(&self, request: &GenerateRequest) -> RequestCost {
        let prompt = match &request.input {
            Some(Input::TokenIds(tokens)) => tokens.ids.len() as u64,
            _ => prompt::text_bytes(request).map_or(0, |bytes| self.tokens(request, bytes)),
        };
        let answer = self.expected(request.stopping.as_ref());
        let completions = vec![answer; continuations(request) as usize];
        let mut cost = RequestCost { prompt, completions };
        if let Some(resume) = resume(request) {
            for (answer, made) in cost.completions.iter_mut().zip(&resume.choices) {
                let tokens = made.token_ids.len() as u64;
                *answer = answer.saturating_sub(tokens).max(1);
                if made.finished.is_some() {
                    *answer = 0;
                } else {
                    cost.prompt += tokens;
                }
            }
        }
        cost
    }

    /// Tokens of one answer.
    fn expected(&self, stopping: Option<&Stopping>) -> u64 {
        let most = stopping.and_then(|s| s.max_tokens).map(u64::from);
        let least = stopping.and_then(|s| s.min_tokens).map_or(1, u64::from);
        // Nothing but the limit ends it.
        let endless = stopping.is_some_and(|s| s.ignore_eos && s.conditions.is_empty());
        let usual = match (most, self.answer.get()) {
            (Some(most), None) => most,
            (Some(most), _) if endless => most,
            _ => self.usual_answer(),
        };
        let expected = usual.max(least);
        most.map_or(expected, |most| expected.min(most))
    }

    /// A prompt of that much text had so many tokens.
    pub(crate) fn observe_prompt(&self, bytes: u64, tokens: u64) {
        if bytes > 0 && tokens > 0 {
            let tokens = tokens as f32;
            let weight = WEIGHT * tokens / (tokens + HALF_TAUGHT);
            self.bytes_per_token.observe((bytes as f32 / tokens).clamp(0.25, 64.0), weight);
        }
    }

    /// An answer had so many tokens; `cut` if it was not free to go on.
    pub(crate) fn observe_completion(&self, tokens: u64, cut: bool) {
        // A short limit says nothing about what the answer would have been.
        if !cut || tokens >= self.usual_answer() {
            self.answer.observe(tokens as f32, WEIGHT);
        }
    }
}

/// What another worker made of it.
pub(crate) fn resume(request: &GenerateRequest) -> Option<&Resume> {
    request.routing.as_ref()?.resume.as_ref()
}

#[cfg(test)]
mod tests {
    use stoker_proto::v1::{Finished, ResumedChoice, Routing, Sampling, TokenIds};

    use super::*;

    fn ids(count: usize, max_tokens: Option<u32>) -> GenerateRequest {
        GenerateRequest {
            input: Some(Input::TokenIds(TokenIds { ids: vec![1; count] })),
            stopping: Some(Stopping { max_tokens, ..Default::default() }),
            ..Default::default()
        }
    }

    fn text(bytes: usize) -> GenerateRequest {
        GenerateRequest { input: Some(Input::Prompt("x".repeat(bytes))), ..Default::default() }
    }

    #[test]
    fn believes_the_request_until_answers_teach_otherwise() {
        let stats = ModelStats::default();
        let answer = |request: &GenerateRequest| stats.estimate(request).completions[0];
        assert_eq!(
            stats.estimate(&text(14)),
            RequestCost { prompt: 4, completions: vec![USUAL_ANSWER] }
        );
        let exact = stats.estimate(&ids(9, Some(100)));
        assert_eq!(exact, RequestCost { prompt: 9, completions: vec![100] });
        assert_eq!(exact.clone().within(50), RequestCost { prompt: 9, completions: vec![50] });
        assert_eq!(exact.clone().within(0), exact);
        assert_eq!(answer(&ids(9, Some(4_000))), 4_000);
        for _ in 0..200 {
            stats.observe_completion(40, false);
            // Cut short: it would have been longer.
            stats.observe_completion(16, true);
        }
        assert_eq!(answer(&ids(9, Some(4_000))), 40);
        assert_eq!(answer(&ids(9, Some(10))), 10);
        assert_eq!(answer(&ids(9, None)), 40);
        let stopping = |stopping| GenerateRequest { stopping: Some(stopping), ..text(4) };
        let endless = Stopping { max_tokens: Some(900), ignore_eos: true, ..Default::default() };
        assert_eq!(answer(&stopping(endless)), 900);
        let least = Stopping { min_tokens: Some(70), ..Default::default() };
        assert_eq!(answer(&stopping(least)), 70);
        for _ in 0..200 {
            stats.observe_completion(80, true);
        }
        assert_eq!(answer(&ids(9, None)), 79, "long ones count also when they are cut");
    }

    #[test]
    fn learns_how_many_bytes_a_token_has() {
        let stats = ModelStats::default();
        for _ in 0..200 {
            stats.observe_prompt(6_000, 2_000);
            // Mostly template.
            stats.observe_prompt(4, 16);
        }
        let prompt = stats.estimate(&text(30_000)).prompt;
        assert!((9_500..11_500).contains(&prompt), "{prompt} for 10,000");
        assert_eq!(stats.estimate(&ids(9, None)).prompt, 9, "token ids need no estimate");
        assert_eq!(stats.tokens(&ids(9, None), 512), 128);
    }

    #[test]
    fn what_was_made_elsewhere_is_read_and_not_made_again() {
        let made =
            |tokens: usize| ResumedChoice { token_ids: vec![1; tokens], ..Default::default() };
        let ended = ResumedChoice { finished: Some(Finished::default()), ..made(60) };
        let resume = Resume { choices: vec![made(30), ended, made(0)], ..Default::default() };
        let request = GenerateRequest {
            sampling: Some(Sampling { num_sequences: Some(3), ..Default::default() }),
            routing: Some(Routing { resume: Some(resume), ..Default::default() }),
            ..ids(9, Some(100))
        };
        let cost = ModelStats::default().estimate(&request);
        assert_eq!(cost, RequestCost { prompt: 9 + 30, completions: vec![70, 0, 100] });
    }
}

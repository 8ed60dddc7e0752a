//! Statistics of a model, learned from its responses: bytes per token, and the completion length.

use std::sync::atomic::{AtomicUsize, Ordering};

use stoker_proto::v1::{GenerateRequest, Resume, Stopping, generate_request::Input};

use super::prompt;
use crate::{call::num_choices, ewma::Ewma};

/// Initial estimate of the bytes per token: that of English text.
const BYTES_PER_TOKEN: f32 = 4.0;
/// Initial estimate of the completion tokens of a request without a limit.
const DEFAULT_COMPLETION_TOKENS: u64 = 256;
/// Weight of one response in the averages.
const WEIGHT: f32 = 1.0 / 16.0;
/// Prompt tokens at which a sample has half the weight of a very long prompt. Short prompts have
/// less weight, since the chat template adds tokens to them.
const HALF_WEIGHT_TOKENS: f32 = 512.0;

/// Statistics of one model.
#[derive(Debug)]
pub(crate) struct ModelStats {
    bytes_per_token: Ewma,
    /// Tokens of a completion that no limit cut off.
    completion_tokens: Ewma,
    /// Cached fraction of the prompts that this router had not sent before, at their rendezvous
    /// owner.
    pub(crate) remote_hit_rate: Ewma,
    /// Counter of the round-robin policy.
    round_robin: AtomicUsize,
}

/// Estimated work of a request, in tokens. The router has no tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestCost {
    /// Tokens to prefill: the prompt, and the tokens that another worker has generated already.
    pub(crate) prompt: u64,
    /// Tokens to generate, per choice.
    pub(crate) completions: Vec<u64>,
}

impl RequestCost {
    /// Limits each completion to the context length of the worker; 0 is no limit.
    pub(crate) fn within(mut self, context_length: u32) -> Self {
        if context_length > 0 {
            // Many requests have a `max_tokens` far above the context length.
            for completion in &mut self.completions {
                *completion = (*completion).min(context_length.into());
            }
        }
        self
    }
}

impl Default for ModelStats {
    fn default() -> Self {
        Self {
            bytes_per_token: Ewma::with_initial(BYTES_PER_TOKEN),
            completion_tokens: Ewma::empty(),
            remote_hit_rate: Ewma::with_initial(0.0),
            round_robin: AtomicUsize::default(),
        }
    }
}

impl ModelStats {
    /// Returns the next value of the round-robin counter.
    pub(crate) fn next_round_robin(&self) -> usize {
        self.round_robin.fetch_add(1, Ordering::Relaxed)
    }

    /// Estimates the tokens in `bytes` bytes of the prompt.
    pub(crate) fn tokens(&self, request: &GenerateRequest, bytes: u64) -> u64 {
        let per_token = match &request.input {
            Some(Input::TokenIds(_)) => size_of::<u32>() as f32,
            _ => self.bytes_per_token.get().unwrap_or(BYTES_PER_TOKEN),
        };
        (bytes as f32 / per_token).ceil() as u64
    }

    /// Estimates the tokens of a completion of an unknown request.
    pub(crate) fn typical_completion_tokens(&self) -> u64 {
        self.completion_tokens.get().map_or(DEFAULT_COMPLETION_TOKENS, |tokens| tokens as u64)
    }

    /// Estimates the work of `request`.
    pub(crate) fn estimate(&self, request: &GenerateRequest) -> RequestCost {
        let prompt = match &request.input {
            Some(Input::TokenIds(tokens)) => tokens.ids.len() as u64,
            _ => prompt::text_bytes(request).map_or(0, |bytes| self.tokens(request, bytes)),
        };
        let completion = self.expected_completion_tokens(request.stopping.as_ref());
        let completions = vec![completion; num_choices(request) as usize];
        let mut cost = RequestCost { prompt, completions };
        if let Some(resume) = resume(request) {
            for (completion, generated) in cost.completions.iter_mut().zip(&resume.choices) {
                let tokens = generated.token_ids.len() as u64;
                *completion = completion.saturating_sub(tokens).max(1);
                if generated.finished.is_some() {
                    *completion = 0;
                } else {
                    cost.prompt += tokens;
                }
            }
        }
        cost
    }

    /// Estimates the tokens of one completion.
    fn expected_completion_tokens(&self, stopping: Option<&Stopping>) -> u64 {
        let max = stopping.and_then(|s| s.max_tokens).map(u64::from);
        let min = stopping.and_then(|s| s.min_tokens).map_or(1, u64::from);
        // Without stop conditions, only the limit ends the completion.
        let runs_to_limit = stopping.is_some_and(|s| s.ignore_eos && s.conditions.is_empty());
        let typical = match (max, self.completion_tokens.get()) {
            (Some(max), None) => max,
            (Some(max), _) if runs_to_limit => max,
            _ => self.typical_completion_tokens(),
        };
        let expected = typical.max(min);
        max.map_or(expected, |max| expected.min(max))
    }

    /// Records that a prompt of `bytes` bytes of text had `tokens` tokens.
    pub(crate) fn observe_prompt(&self, bytes: u64, tokens: u64) {
        if bytes > 0 && tokens > 0 {
            let tokens = tokens as f32;
            let weight = WEIGHT * tokens / (tokens + HALF_WEIGHT_TOKENS);
            self.bytes_per_token.observe((bytes as f32 / tokens).clamp(0.25, 64.0), weight);
        }
    }

    /// Records a completion of `tokens` tokens; `cut` if a limit ended it.
    pub(crate) fn observe_completion(&self, tokens: u64, cut: bool) {
        // A completion cut off early gives no information about its full length.
        if !cut || tokens >= self.typical_completion_tokens() {
            self.completion_tokens.observe(tokens as f32, WEIGHT);
        }
    }
}

/// Returns the part of the response that another worker has generated, if the request is resumed.
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
    fn expects_max_tokens_until_completion_lengths_are_known() {
        let stats = ModelStats::default();
        let completion = |request: &GenerateRequest| stats.estimate(request).completions[0];
        assert_eq!(
            stats.estimate(&text(14)),
            RequestCost { prompt: 4, completions: vec![DEFAULT_COMPLETION_TOKENS] }
        );
        let exact = stats.estimate(&ids(9, Some(100)));
        assert_eq!(exact, RequestCost { prompt: 9, completions: vec![100] });
        assert_eq!(exact.clone().within(50), RequestCost { prompt: 9, completions: vec![50] });
        assert_eq!(exact.clone().within(0), exact);
        assert_eq!(completion(&ids(9, Some(4_000))), 4_000);
        for _ in 0..200 {
            stats.observe_completion(40, false);
            // Cut off: the full length is unknown.
            stats.observe_completion(16, true);
        }
        assert_eq!(completion(&ids(9, Some(4_000))), 40);
        assert_eq!(completion(&ids(9, Some(10))), 10);
        assert_eq!(completion(&ids(9, None)), 40);
        let stopping = |stopping| GenerateRequest { stopping: Some(stopping), ..text(4) };
        let runs_to_limit =
            Stopping { max_tokens: Some(900), ignore_eos: true, ..Default::default() };
        assert_eq!(completion(&stopping(runs_to_limit)), 900);
        let with_min = Stopping { min_tokens: Some(70), ..Default::default() };
        assert_eq!(completion(&stopping(with_min)), 70);
        for _ in 0..200 {
            stats.observe_completion(80, true);
        }
        assert_eq!(completion(&ids(9, None)), 79, "long completions count even if cut off");
    }

    #[test]
    fn learns_the_bytes_per_token() {
        let stats = ModelStats::default();
        for _ in 0..200 {
            stats.observe_prompt(6_000, 2_000);
            // Mostly chat template.
            stats.observe_prompt(4, 16);
        }
        let prompt = stats.estimate(&text(30_000)).prompt;
        assert!((9_500..11_500).contains(&prompt), "{prompt} for 10,000");
        assert_eq!(stats.estimate(&ids(9, None)).prompt, 9, "token ids need no estimate");
        assert_eq!(stats.tokens(&ids(9, None), 512), 128);
    }

    #[test]
    fn resumed_tokens_are_prefilled_and_not_generated_again() {
        let generated =
            |tokens: usize| ResumedChoice { token_ids: vec![1; tokens], ..Default::default() };
        let ended = ResumedChoice { finished: Some(Finished::default()), ..generated(60) };
        let resume =
            Resume { choices: vec![generated(30), ended, generated(0)], ..Default::default() };
        let request = GenerateRequest {
            sampling: Some(Sampling { num_sequences: Some(3), ..Default::default() }),
            routing: Some(Routing { resume: Some(resume), ..Default::default() }),
            ..ids(9, Some(100))
        };
        let cost = ModelStats::default().estimate(&request);
        assert_eq!(cost, RequestCost { prompt: 9 + 30, completions: vec![70, 0, 100] });
    }
}

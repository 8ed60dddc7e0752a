//! A device that is not there: it takes the time of one and needs no weights.
//!
//! Everything above it is real: the scheduler, the block manager, sampling, detokenising, the protocol.
//! Each position of a text has a handful of tokens to choose from, a function of the position alone, and
//! sampling chooses among them by the request's seed. So an answer depends on (seed, choice, position)
//! and on nothing else, as it does with a real model, and two workers give the same one.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    model::{Model, ProgressCounter},
    runner::{BatchEntry, StepOutput},
    sampling::mix64,
    weights::{Family, ModelConfig, RopeScaling},
};

/// Tokens to choose from at each position.
const CANDIDATES: u64 = 8;
/// The logit of everything else: never drawn, at any temperature that leaves candidates apart.
const UNLIKELY: f32 = -1e6;

/// A long step is as long in pieces, as the layers of a real one are.
const PIECE: Duration = Duration::from_millis(100);

/// How long a step takes, and what comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// Of every step, whatever it computes: reading the weights.
    pub step: Duration,
    /// Of each prompt token in a step.
    pub prefill_token: Duration,
    /// Of each token in a step that a sequence decodes with: its newest, and drafts.
    pub decode_token: Duration,
    /// Of each token in the cache that a step attends to.
    pub context_token: Duration,
    /// Mean length of an answer that nothing else ends, in tokens; 0 never ends by itself.
    pub answer_tokens: u32,
    /// Longest prompt and answer together, in tokens.
    pub context_length: u32,
    /// A token that the device cannot read: a step that computes it panics. 0 is none.
    pub panic_token: u32,
}

impl Profile {
    /// What a step over `parts` takes.
    pub fn cost(&self, parts: &[BatchEntry]) -> Duration {
        let each = |unit: Duration, count: usize| {
            unit.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
        };
        let decodes = |part: &&BatchEntry| part.ids.len() == 1 || part.ids.len() == part.logits;
        let decoding = parts.iter().filter(decodes).map(|part| part.ids.len()).sum();
        let tokens: usize = parts.iter().map(|part| part.ids.len()).sum();
        let context = parts.iter().map(|part| part.start + part.ids.len()).sum();
        self.step
            + each(self.prefill_token, tokens - decoding)
            + each(self.decode_token, decoding)
            + each(self.context_token, context)
    }

    /// The shape of the smallest model there could be: 1 KiB of cache a token.
    pub(crate) fn config(&self, vocab_size: usize, eos: u32) -> ModelConfig {
        ModelConfig {
            family: Family::Llama,
            hidden_size: 128,
            intermediate_size: 128,
            num_layers: 1,
            num_heads: 1,
            num_kv_heads: 1,
            head_dim: 128,
            vocab_size,
            context_length: self.context_length as usize,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            windows: Vec::new(),
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            qk_norm: false,
            tie_embeddings: true,
            bos_token_id: None,
            eos_token_ids: vec![eos],
        }
    }
}

/// Runs steps by a profile.
pub(crate) struct Simulator {
    profile: Profile,
    vocab_size: usize,
    /// What texts are made of: tokens that are whole characters.
    words: Vec<u32>,
    eos: Option<u32>,
    progress: ProgressCounter,
}

impl Simulator {
    pub(crate) fn new(profile: Profile, model: &Model) -> Self {
        let Model { config, tokenizer, .. } = model;
        let is_word = |id: &u32| {
            let bytes = tokenizer.token_bytes(*id).filter(|bytes| !bytes.is_empty());
            bytes.is_some_and(|b| str::from_utf8(b).is_ok()) && !tokenizer.is_special(*id)
        };
        Self {
            profile,
            vocab_size: config.vocab_size,
            words: (0..config.vocab_size as u32).filter(is_word).collect(),
            eos: config.eos_token_ids.first().copied(),
            progress: model.progress.clone(),
        }
    }

    /// Takes the time of a step, then answers like [`crate::runner::Runner::run`].
    ///
    /// # Panics
    ///
    /// Where a part has the profile's `panic_token`, as a defect of a real device would on a request that meets it.
    pub(crate) fn run(&self, parts: &[BatchEntry]) -> StepOutput {
        let unreadable = |part: &BatchEntry| part.ids.contains(&self.profile.panic_token);
        if self.profile.panic_token > 0 && parts.iter().any(unreadable) {
            panic!("the profile's panic_token, {}, is in a step", self.profile.panic_token);
        }
        let end = Instant::now() + self.profile.cost(parts);
        let wanted = parts.iter().flat_map(|part| {
            let end = part.start + part.ids.len();
            end - part.logits..end
        });
        let logits = wanted.flat_map(|position| self.logits(position + 1)).collect();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            thread::sleep(left.min(PIECE));
            self.progress.increment();
            if left <= PIECE {
                break;
            }
        }
        StepOutput::from_logits(logits, self.vocab_size)
    }

    /// A row for the token at `position`: a few words, all equally likely, and perhaps an end.
    fn logits(&self, position: usize) -> Vec<f32> {
        let mut row = vec![UNLIKELY; self.vocab_size];
        let mut set = |token: Option<u32>, logit| {
            if let Some(logits) = token.and_then(|id| row.get_mut(id as usize)) {
                *logits = logit;
            }
        };
        for candidate in 0..CANDIDATES {
            let draw = mix64(position as u64 * CANDIDATES + candidate);
            let word = draw.checked_rem(self.words.len() as u64);
            set(word.and_then(|n| self.words.get(n as usize)).copied(), 0.0);
        }
        if self.profile.answer_tokens > 0 {
            // One in `answer_tokens` against words of weight one.
            let others = (self.profile.answer_tokens as f32 - 1.0).max(1e-3);
            set(self.eos, (CANDIDATES as f32 / others).ln());
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: Profile = Profile {
        step: Duration::from_millis(5),
        prefill_token: Duration::from_micros(20),
        decode_token: Duration::from_micros(100),
        context_token: Duration::from_nanos(10),
        answer_tokens: 0,
        context_length: 4096,
        panic_token: 0,
    };

    #[test]
    fn a_step_costs_what_its_tokens_cost() {
        let part = |start, ids| BatchEntry { ids, start, table: &[], logits: 1, draws: &[] };
        let (prompt, token) = ([1; 300], [1; 1]);
        // A chunk of 300 after 200, and two that decode at 1,000.
        let parts = [part(200, &prompt[..]), part(999, &token[..]), part(999, &token[..])];
        let micros = 5_000 + 300 * 20 + 2 * 100 + (500 + 1_000 + 1_000) / 100;
        assert_eq!(PROFILE.cost(&parts), Duration::from_micros(micros));
    }
}

//! Runs steps on a simulated device: it takes the time of a real one and needs no weights.
//!
//! Everything above it is real: the scheduler, the block manager, sampling, detokenising, the
//! protocol. Each position of a text has a few candidate tokens, a function of the position alone,
//! and sampling chooses among them by the request's seed. So a response depends on (seed, choice,
//! position) and on nothing else, as it does with a real model, and two workers give the same one.

use std::{
    thread,
    time::{Duration, Instant},
};

use stoker_ops::{math, noise::mix64};

use super::BatchEntry;
use crate::{
    model::{Model, ProgressCounter},
    profile::Profile,
    step_output::StepOutput,
};

/// Number of candidate tokens at each position.
const CANDIDATES: u64 = 8;
/// Logit of all other tokens, which are never drawn at usual temperatures.
const UNLIKELY: f32 = -1e6;

/// Maximum time between two signs of progress in a step, as between the layers of a real one.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Duration of a step over `entries` on a device with `profile`.
fn step_cost(profile: &Profile, entries: &[BatchEntry]) -> Duration {
    let each = |unit: Duration, count: usize| {
        unit.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
    };
    let decodes = |entry: &&BatchEntry| entry.ids.len() == 1 || entry.ids.len() == entry.logits;
    let decoding = entries.iter().filter(decodes).map(|entry| entry.ids.len()).sum();
    let tokens: usize = entries.iter().map(|entry| entry.ids.len()).sum();
    let context = entries.iter().map(|entry| entry.start + entry.ids.len()).sum();
    profile.step
        + each(profile.prefill_token, tokens - decoding)
        + each(profile.decode_token, decoding)
        + each(profile.context_token, context)
}

/// Runs steps according to a profile.
pub(crate) struct Simulator {
    profile: Profile,
    vocab_size: usize,
    /// Tokens of which texts consist: those that are whole characters.
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

    /// Takes the time of a step, then returns its outputs as [`super::Runner::run`] does.
    ///
    /// # Panics
    ///
    /// If an entry has the profile's `panic_token`, as a real device might on a request that
    /// triggers a defect.
    pub(crate) fn run(&self, entries: &[BatchEntry]) -> StepOutput {
        let panics = |entry: &BatchEntry| entry.ids.contains(&self.profile.panic_token);
        if self.profile.panic_token > 0 && entries.iter().any(panics) {
            panic!("the profile's panic_token, {}, is in a step", self.profile.panic_token);
        }
        let hangs = |entry: &BatchEntry| entry.ids.contains(&self.profile.hang_token);
        while self.profile.hang_token > 0 && entries.iter().any(hangs) {
            thread::park();
        }
        let end = Instant::now() + step_cost(&self.profile, entries);
        let positions = entries.iter().flat_map(|entry| {
            let end = entry.start + entry.ids.len();
            end - entry.logits..end
        });
        let logits = positions.flat_map(|position| self.logits(position + 1)).collect();
        loop {
            let remaining = end.saturating_duration_since(Instant::now());
            #[expect(clippy::disallowed_methods, reason = "a step takes its time on this thread")]
            thread::sleep(remaining.min(PROGRESS_INTERVAL));
            self.progress.increment();
            if remaining <= PROGRESS_INTERVAL {
                break;
            }
        }
        StepOutput::from_logits(logits, self.vocab_size)
    }

    /// The logits row for the token at `position`: a few equally likely words, and the end of text
    /// if enabled.
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
        if self.profile.response_tokens > 0 {
            // A probability of 1 in `response_tokens`, where each word has weight 1.
            let others = (f64::from(self.profile.response_tokens) - 1.0).max(1e-3);
            set(self.eos, math::ln(CANDIDATES as f64 / others) as f32);
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
        response_tokens: 0,
        context_length: 4096,
        panic_token: 0,
        hang_token: 0,
    };

    #[test]
    fn the_cost_of_a_step_is_the_sum_over_its_tokens() {
        let entry = |start, ids| BatchEntry { ids, start, table: &[], logits: 1, draws: &[] };
        let (prompt, token) = ([1; 300], [1; 1]);
        // A chunk of 300 after 200, and two that decode at 1,000.
        let entries = [entry(200, &prompt[..]), entry(999, &token[..]), entry(999, &token[..])];
        let micros = 5_000 + 300 * 20 + 2 * 100 + (500 + 1_000 + 1_000) / 100;
        assert_eq!(step_cost(&PROFILE, &entries), Duration::from_micros(micros));
    }
}

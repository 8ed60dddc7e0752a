//! Machines with known step costs, and drafts with known acceptance rates.

use std::{collections::HashMap, time::Duration};

use crate::sampling::{Adjustments, Logprobs, Sampling, mix64};
use crate::speculation::*;

/// Duration in seconds by number of tokens.
pub(super) type Seconds = fn(usize) -> f64;

/// Costs of a machine.
#[derive(Clone, Copy)]
pub(super) struct Machine {
    /// Cost of a step of the served model.
    pub(super) step: Seconds,
    /// Cost of a drafting round.
    pub(super) round: Seconds,
}

/// Flat to eight tokens, then in proportion: a CPU.
pub(super) const CPU: Seconds = |n| 0.010 * (n as f64 / 8.0).max(1.0);
/// Flat to 64, in tiles of 16 from there: a GPU.
pub(super) const GPU: Seconds = |n| 0.005 * (n.div_ceil(16) as f64 / 4.0).max(1.0);
/// Every token costs the same.
pub(super) const BOUND: Seconds = |n| 0.002 * n as f64;
/// Half fixed, half by tokens.
pub(super) const MIXED: Seconds = |n| 0.002 * (8.0 + n as f64);

pub(super) const FREE: Seconds = |_| 0.0;
pub(super) const MACHINES: [Machine; 7] = [
    Machine { step: CPU, round: FREE },
    Machine { step: CPU, round: |n| 0.12 * CPU(n) },
    Machine { step: GPU, round: FREE },
    Machine { step: GPU, round: |n| 0.2 * GPU(n) },
    Machine { step: BOUND, round: FREE },
    Machine { step: MIXED, round: FREE },
    Machine { step: MIXED, round: |n| 0.1 * MIXED(n) },
];

/// Length in steps of a slow period, and of the normal one after it.
pub(super) const SPELL: usize = 50;
/// Length in steps of a short burst.
pub(super) const BURST: usize = 6;
/// Number of prompt tokens of a sequence.
pub(super) const PROMPT: usize = 32;
/// Maximum number of backlog tokens of a sequence in one round.
pub(super) const CHUNK: usize = 128;

/// A drafter that always proposes the maximum number of tokens.
pub(super) struct ConstantDrafter {
    pub(super) round: Seconds,
    /// Number of computed tokens of each sequence.
    pub(super) computed: HashMap<SequenceId, usize>,
}

impl ConstantDrafter {
    fn backlog(&self, request: &DraftRequest<'_>) -> usize {
        (request.tokens.len() - self.computed.get(&request.id).copied().unwrap_or(0)).min(CHUNK)
    }
}

impl Drafter for ConstantDrafter {
    fn capacities(&mut self, requests: &[DraftRequest<'_>]) -> Vec<DraftCapacity> {
        for request in requests {
            if let Some(computed) = self.computed.get_mut(&request.id) {
                *computed = (*computed).min(request.tokens.len() - 1);
            }
        }
        let capacity = |request: &DraftRequest<'_>| DraftCapacity {
            max_tokens: request.max_drafts.min(MAX_DRAFT_TOKENS),
            class: 0,
            backlog: self.backlog(request),
        };
        requests.iter().map(capacity).collect()
    }

    fn draft(&mut self, requests: &[DraftRequest<'_>], max_tokens: &[usize]) -> Vec<Vec<u32>> {
        for (request, max_tokens) in requests.iter().zip(max_tokens).filter(|(_, max)| **max > 0) {
            // All draft tokens but the last are computed, and count if they are accepted.
            self.computed.insert(request.id, request.tokens.len() + max_tokens - 1);
        }
        max_tokens.iter().map(|max_tokens| vec![0; *max_tokens]).collect()
    }

    fn round_seconds(&self, tokens: usize) -> Option<f64> {
        Some((self.round)(tokens))
    }

    fn release(&mut self, id: SequenceId) {
        self.computed.remove(&id);
    }
}

/// Totals of a run.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Run {
    /// Expected number of tokens, from the known acceptance rates.
    pub(super) tokens: f64,
    pub(super) seconds: f64,
    pub(super) drafted: usize,
    /// Expected tokens and seconds of the last quarter of the steps.
    pub(super) late: (f64, f64),
}

impl Run {
    /// Tokens per second.
    pub(super) fn rate(&self) -> f64 {
        self.tokens / self.seconds
    }

    /// Tokens per second in the last quarter of the steps.
    pub(super) fn late_rate(&self) -> f64 {
        self.late.0 / self.late.1
    }
}

/// Slowdown of the machine by other load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interference {
    None,
    /// One step in ten takes 1.5 times as long.
    Spikes,
    /// In bursts of six steps, about one burst in 50 steps, steps take 1.4 times as long.
    Bursts,
    /// Steps take up to 1.1 times as long, one in 50 takes 4 times as long, and for every other
    /// [`SPELL`] steps all take 1.5 times as long.
    Spells,
}

impl Interference {
    /// Ratio of the duration of a step to its undisturbed one.
    fn slowdown(self, step: usize, roll: f64) -> f64 {
        let spell = if (step / SPELL).is_multiple_of(2) { 1.5 } else { 1.0 };
        match self {
            Self::None => 1.0,
            Self::Spikes if roll < 0.1 => 1.5,
            Self::Spikes => 1.0,
            Self::Bursts if mix64((step / BURST) as u64).is_multiple_of(8) => 1.4,
            Self::Bursts => 1.0,
            Self::Spells if roll < 0.02 => 4.0 * spell,
            Self::Spells => (1.0 + 0.1 * roll) * spell,
        }
    }
}

/// The sequences of a run.
pub(super) struct Workload<'a> {
    /// Number of concurrent sequences.
    pub(super) sequences: usize,
    /// Number of steps of each sequence.
    pub(super) lifetime: usize,
    /// Acceptance rate by the number of the sequence.
    pub(super) acceptance: &'a dyn Fn(usize) -> f64,
    pub(super) interference: Interference,
}

impl Machine {
    pub(super) fn run(self, depth: Depth, steps: usize, workload: &Workload<'_>) -> Run {
        let sampler = Sampler::new(
            Sampling::greedy(),
            Adjustments::default(),
            Logprobs::default(),
            &[],
            Vec::new(),
            0,
        );
        let mut speculator = Speculator::with(
            ConstantDrafter { round: self.round, computed: HashMap::new() },
            depth,
        );
        let mut cost = StepCost::default();
        let mut counter = 0u64;
        let mut roll = || {
            counter += 1;
            (mix64(counter) >> 11) as f64 / (1u64 << 53) as f64
        };
        let mut run = Run::default();
        // The prefill comes first.
        cost.observe(workload.sequences, Duration::from_secs_f64((self.step)(workload.sequences)));
        let mut ages: HashMap<usize, usize> = HashMap::new();
        // Length of each sequence, and how much of it the drafter has computed.
        let mut lengths: HashMap<usize, (usize, usize)> = HashMap::new();
        let zeros = vec![0; PROMPT + steps * (1 + MAX_DRAFT_TOKENS)];
        let mut numbers: Vec<usize> = (0..workload.sequences).collect();
        for step in 0..steps {
            for number in &mut numbers {
                let age = ages.entry(*number).or_insert(*number * 7 % workload.lifetime);
                *age += 1;
                if *age > workload.lifetime {
                    speculator.release(SequenceId { request: *number as u64, choice: 0 });
                    *number += workload.sequences;
                    ages.insert(*number, 0);
                }
            }
            let request = |number: &usize| DraftRequest {
                id: SequenceId { request: *number as u64, choice: 0 },
                tokens: &zeros[..lengths.get(number).map_or(PROMPT, |(length, _)| *length)],
                max_drafts: 100,
                sampler: &sampler,
            };
            let requests: Vec<_> = numbers.iter().map(request).collect();
            let proposals = speculator.propose(&requests, 0, &cost);
            let drafted: usize = proposals.iter().map(Vec::len).sum();
            let size = workload.sequences + drafted;
            let slowdown = workload.interference.slowdown(step, roll());
            cost.observe_decode(size, Duration::from_secs_f64(slowdown * (self.step)(size)));
            let mut catching_up = 0;
            for (number, _) in numbers.iter().zip(&proposals).filter(|(_, p)| !p.is_empty()) {
                let (length, computed) = lengths.entry(*number).or_insert((PROMPT, 0));
                catching_up += (*length - *computed).min(CHUNK);
                *computed = *length;
            }
            let first = if catching_up > 0 { (self.round)(catching_up) } else { 0.0 };
            let rounds = (2..=MAX_DRAFT_TOKENS)
                .map(|round| proposals.iter().filter(|proposal| proposal.len() >= round).count())
                .filter(|width| *width > 0);
            let seconds = (self.step)(size) + first + rounds.map(self.round).sum::<f64>();
            let mut tokens = 0.0;
            for (number, proposal) in numbers.iter().zip(&proposals) {
                let chance = (workload.acceptance)(*number);
                let accepted = proposal.iter().take_while(|_| roll() < chance).count();
                let id = SequenceId { request: *number as u64, choice: 0 };
                speculator.on_verified(id, proposal.len(), accepted);
                let (length, computed) = lengths.entry(*number).or_insert((PROMPT, 0));
                *length += 1 + accepted;
                if !proposal.is_empty() {
                    *computed += accepted.min(proposal.len() - 1);
                }
                tokens += expected_tokens(proposal.len(), chance);
            }
            run.tokens += tokens;
            run.seconds += seconds;
            run.drafted += drafted;
            if step >= steps - steps / 4 {
                run.late = (run.late.0 + tokens, run.late.1 + seconds);
            }
        }
        run
    }

    /// Tokens per second without draft tokens.
    pub(super) fn plain(self, sequences: usize) -> f64 {
        sequences as f64 / (self.step)(sequences)
    }

    /// Tokens per second with always `k` draft tokens, accepted with probability `chance`.
    pub(super) fn fixed(self, sequences: usize, k: usize, chance: f64) -> f64 {
        let seconds = (self.step)(sequences * (k + 1)) + k as f64 * (self.round)(sequences);
        sequences as f64 * expected_tokens(k, chance) / seconds
    }
}

/// Expected number of tokens of a sequence in a step with `k` draft tokens.
pub(super) fn expected_tokens(k: usize, chance: f64) -> f64 {
    (0..=k as i32).map(|i| chance.powi(i)).sum()
}

pub(super) fn always(chance: f64) -> impl Fn(usize) -> f64 {
    move |_| chance
}

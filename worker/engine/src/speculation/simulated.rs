//! Speculative decoding on simulated machines with known step costs and acceptance rates.

use std::{collections::HashMap, time::Duration};

use super::*;
use crate::sampling::{Adjustments, Logprobs, Sampling, mix64};

/// Duration in seconds by number of tokens.
type Seconds = fn(usize) -> f64;

/// Costs of a machine.
#[derive(Clone, Copy)]
struct Machine {
    /// Cost of a step of the served model.
    step: Seconds,
    /// Cost of a drafting round.
    round: Seconds,
}

/// Flat to eight tokens, then in proportion: a CPU.
const CPU: Seconds = |n| 0.010 * (n as f64 / 8.0).max(1.0);
/// Flat to 64, in tiles of 16 from there: a GPU.
const GPU: Seconds = |n| 0.005 * (n.div_ceil(16) as f64 / 4.0).max(1.0);
/// Every token costs the same.
const BOUND: Seconds = |n| 0.002 * n as f64;
/// Half fixed, half by tokens.
const MIXED: Seconds = |n| 0.002 * (8.0 + n as f64);

const FREE: Seconds = |_| 0.0;
const MACHINES: [Machine; 7] = [
    Machine { step: CPU, round: FREE },
    Machine { step: CPU, round: |n| 0.12 * CPU(n) },
    Machine { step: GPU, round: FREE },
    Machine { step: GPU, round: |n| 0.2 * GPU(n) },
    Machine { step: BOUND, round: FREE },
    Machine { step: MIXED, round: FREE },
    Machine { step: MIXED, round: |n| 0.1 * MIXED(n) },
];

/// Length in steps of a slow period, and of the normal one after it.
const SPELL: usize = 50;
/// Length in steps of a short burst.
const BURST: usize = 6;
/// Number of prompt tokens of a sequence.
const PROMPT: usize = 32;
/// Maximum number of backlog tokens of a sequence in one round.
const CHUNK: usize = 128;

/// A drafter that always proposes the maximum number of tokens.
struct ConstantDrafter {
    round: Seconds,
    /// Number of computed tokens of each sequence.
    computed: HashMap<SequenceId, usize>,
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
struct Run {
    /// Expected number of tokens, from the known acceptance rates.
    tokens: f64,
    seconds: f64,
    drafted: usize,
    /// Expected tokens and seconds of the last quarter of the steps.
    late: (f64, f64),
}

impl Run {
    /// Tokens per second.
    fn rate(&self) -> f64 {
        self.tokens / self.seconds
    }

    /// Tokens per second in the last quarter of the steps.
    fn late_rate(&self) -> f64 {
        self.late.0 / self.late.1
    }
}

/// Slowdown of the machine by other load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interference {
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
struct Workload<'a> {
    /// Number of concurrent sequences.
    sequences: usize,
    /// Number of steps of each sequence.
    lifetime: usize,
    /// Acceptance rate by the number of the sequence.
    acceptance: &'a dyn Fn(usize) -> f64,
    interference: Interference,
}

impl Machine {
    fn run(self, depth: Depth, steps: usize, workload: &Workload<'_>) -> Run {
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
    fn plain(self, sequences: usize) -> f64 {
        sequences as f64 / (self.step)(sequences)
    }

    /// Tokens per second with always `k` draft tokens, accepted with probability `chance`.
    fn fixed(self, sequences: usize, k: usize, chance: f64) -> f64 {
        let seconds = (self.step)(sequences * (k + 1)) + k as f64 * (self.round)(sequences);
        sequences as f64 * expected_tokens(k, chance) / seconds
    }
}

/// Expected number of tokens of a sequence in a step with `k` draft tokens.
fn expected_tokens(k: usize, chance: f64) -> f64 {
    (0..=k as i32).map(|i| chance.powi(i)).sum()
}

fn always(chance: f64) -> impl Fn(usize) -> f64 {
    move |_| chance
}

/// Ratio of the rate of 300 steps to plain decoding, the lowest first, for every machine, 1 to 32
/// sequences of `lifetime` steps, and acceptance rates from 0 to 1.
fn all_ratios(lifetime: usize, interference: Interference) -> Vec<(f64, String)> {
    let mut ratios = Vec::new();
    for (w, machine) in MACHINES.into_iter().enumerate() {
        for sequences in 1..=32 {
            for tenth in 0..=10 {
                let chance = always(f64::from(tenth) / 10.0);
                let workload = Workload { sequences, lifetime, acceptance: &chance, interference };
                let run = machine.run(Depth::Adaptive, 300, &workload);
                let ratio = run.rate() / machine.plain(sequences);
                ratios.push((ratio, format!("{ratio:.3}: machine {w}, {sequences} at .{tenth}")));
            }
        }
    }
    ratios.sort_by(|one, other| one.0.total_cmp(&other.0));
    ratios
}

#[test]
fn speculation_is_never_much_slower_than_plain_decoding() {
    for lifetime in [60, 10_000] {
        let (worst, name) = &all_ratios(lifetime, Interference::None)[0];
        assert!(*worst >= 0.97, "{name}, lifetime {lifetime}");
    }
}

#[test]
fn speculation_is_hardly_slower_than_plain_decoding_under_other_load() {
    // Estimates from a slow period mislead in a fast one for a few steps.
    let ratios = all_ratios(200, Interference::Spells);
    let (worst, name) = &ratios[0];
    assert!(*worst >= 0.95, "{name}");
    let slow = ratios.iter().filter(|(ratio, _)| *ratio < 0.97).count();
    assert!(slow * 400 <= ratios.len(), "{slow} of {}", ratios.len());
    let gain = ratios.iter().map(|(ratio, _)| ratio.ln()).sum::<f64>() / ratios.len() as f64;
    assert!(gain.exp() > 1.13, "{}", gain.exp());
}

#[test]
fn a_step_that_is_slow_by_chance_does_not_start_drafting() {
    // After a slow plain step drafts seem to pay, and plain steps are not observed while drafts
    // run.
    let (worst, name) = &all_ratios(10_000, Interference::Spikes)[0];
    assert!(*worst >= 0.97, "{name}");
}

#[test]
fn no_probe_costs_many_steps() {
    // After a burst larger steps seem cheap, and a probe makes all sequences of a batch catch up at
    // once.
    for lifetime in [60, 10_000] {
        let (worst, name) = &all_ratios(lifetime, Interference::Bursts)[0];
        assert!(*worst >= 0.97, "{name}, lifetime {lifetime}");
    }
}

#[test]
fn the_adaptive_depth_is_near_the_best_fixed_one() {
    let mut worst = (f64::MAX, String::new());
    for (w, machine) in MACHINES.into_iter().enumerate() {
        for sequences in [1, 2, 4, 8, 16, 32] {
            for tenth in [5, 7, 9, 10] {
                let chance = f64::from(tenth) / 10.0;
                let workload = Workload {
                    sequences,
                    lifetime: 10_000,
                    acceptance: &always(chance),
                    interference: Interference::None,
                };
                let run = machine.run(Depth::Adaptive, 1200, &workload);
                let best = (0..=MAX_DRAFT_TOKENS)
                    .map(|k| (k, machine.fixed(sequences, k, chance)))
                    .max_by(|one, other| one.1.total_cmp(&other.1));
                let (k, best) = best.unwrap_or_default();
                let ratio = run.late_rate() / best;
                let name = format!("{ratio:.3}: machine {w}, {sequences} at .{tenth}, best {k}");
                if ratio < worst.0 {
                    worst = (ratio, name);
                }
            }
        }
    }
    eprintln!("worst {}", worst.1);
    // The best fixed depth pays neither for probes nor for backlogs, which may cost all of a gain
    // of a tenth.
    assert!(worst.0 >= 0.9, "{}", worst.1);
}

#[test]
fn nothing_is_drafted_where_all_tokens_cost_the_same() {
    let machine = Machine { step: BOUND, round: FREE };
    for sequences in [1, 4, 32] {
        let workload = Workload {
            sequences,
            lifetime: 10_000,
            acceptance: &always(0.9),
            interference: Interference::None,
        };
        let run = machine.run(Depth::Adaptive, 1000, &workload);
        // A hundredth of the time, and the initial exploration budget.
        assert!(run.drafted <= 16 * sequences, "{} at {sequences}", run.drafted);
    }
}

#[test]
fn drafting_stops_if_nothing_is_accepted() {
    for machine in MACHINES {
        for sequences in [1, 8, 32] {
            let workload = Workload {
                sequences,
                lifetime: 10_000,
                acceptance: &always(0.0),
                interference: Interference::None,
            };
            let [early, late] =
                [300, 600].map(|n| machine.run(Depth::Adaptive, n, &workload).drafted);
            assert!(early <= 40 * sequences, "{early} for {sequences}");
            assert!(late - early <= 6 * sequences, "{} for {sequences}", late - early);
        }
    }
}

#[test]
fn the_depth_is_chosen_for_each_sequence() {
    // Half of the sequences have a high acceptance rate, the others none.
    let machine = Machine { step: CPU, round: FREE };
    let chance = |number: usize| if number.is_multiple_of(2) { 0.95 } else { 0.0 };
    let workload = Workload {
        sequences: 4,
        lifetime: 10_000,
        acceptance: &chance,
        interference: Interference::None,
    };
    let run = machine.run(Depth::Adaptive, 600, &workload);
    assert!(run.rate() > 1.6 * machine.plain(4), "{}", run.rate() / machine.plain(4));
}

#[test]
fn a_fixed_number_is_always_drafted() {
    let depth = "3".parse().expect("a number of tokens");
    let workload = Workload {
        sequences: 8,
        lifetime: 10_000,
        acceptance: &always(0.0),
        interference: Interference::None,
    };
    let run = Machine { step: BOUND, round: FREE }.run(depth, 50, &workload);
    assert_eq!(run.drafted, 50 * 8 * 3);
}

#[test]
fn unknown_costs_are_probed_with_one_token() {
    let ids: Vec<_> = (0..3).map(|request| SequenceId { request, choice: 0 }).collect();
    let capacities = [0, 5, 5].map(|max_tokens| DraftCapacity { max_tokens, class: 0, backlog: 1 });
    let mut cost = StepCost::default();
    let mut control = DepthControl::new(Depth::default());
    assert_eq!(control.choose(&ids, &capacities, 0, &cost, |_| None), [0, 1, 0]);
    cost.observe(64, Duration::from_millis(10));
    // The cost of drafting is unknown: one token for each, once, and no more while none is
    // accepted.
    assert_eq!(control.choose(&ids, &capacities, 0, &cost, |_| None), [0, 1, 1]);
    ids[1..].iter().for_each(|id| control.on_verified(*id, 1, 0));
    assert_eq!(control.choose(&ids, &capacities, 0, &cost, |_| None), [0, 0, 0]);
}

#[test]
fn drafts_are_compared_with_a_step_that_has_run() {
    // The batch became smaller: the cost of 20 tokens is unknown, and may be lower than that of 30.
    let (mut cost, mut control) = (StepCost::default(), DepthControl::new(Depth::default()));
    for tokens in [30, 60] {
        cost.observe(tokens, Duration::from_secs_f64(BOUND(tokens)));
    }
    let ids: Vec<_> = (0..20).map(|request| SequenceId { request, choice: 0 }).collect();
    let capacities = [DraftCapacity { max_tokens: 4, class: 0, backlog: 0 }; 20];
    assert_eq!(control.choose(&ids, &capacities, 0, &cost, |_| Some(0.0)), [0; 20]);
}

#[test]
fn verified_tokens_are_counted() {
    let mut speculator = Speculator::with(
        ConstantDrafter { round: FREE, computed: HashMap::new() },
        Depth::default(),
    );
    let id = SequenceId { request: 1, choice: 0 };
    speculator.on_verified(id, 4, 2);
    speculator.on_verified(id, 0, 0);
    speculator.on_verified(id, 3, 3);
    assert_eq!(speculator.counts(), DraftCounts { drafted: 7, accepted: 5 });
}

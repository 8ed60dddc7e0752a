//! A world in which everything is known: what steps cost, and how often drafts hold.

use std::{collections::HashMap, time::Duration};

use super::*;
use crate::sampling::{Adjustments, Logprobs, Sampling, mix64};

/// Seconds by tokens.
type Seconds = fn(usize) -> f64;

/// What things cost.
#[derive(Clone, Copy)]
struct World {
    step: Seconds,
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
const WORLDS: [World; 7] = [
    World { step: CPU, round: FREE },
    World { step: CPU, round: |n| 0.12 * CPU(n) },
    World { step: GPU, round: FREE },
    World { step: GPU, round: |n| 0.2 * GPU(n) },
    World { step: BOUND, round: FREE },
    World { step: MIXED, round: FREE },
    World { step: MIXED, round: |n| 0.1 * MIXED(n) },
];

/// Steps for which the memory of a busy machine is slow, and for which it is not.
const SPELL: usize = 50;
/// Steps of a short one.
const BURST: usize = 6;
/// Tokens that a sequence has before it draws any.
const PROMPT: usize = 32;
/// More of a sequence are not computed in one round.
const CHUNK: usize = 128;

/// Always has something to propose.
struct Willing {
    round: Seconds,
    /// Tokens of each sequence that it has computed.
    computed: HashMap<SequenceId, usize>,
}

impl Willing {
    fn behind(&self, asking: &Asking<'_>) -> usize {
        (asking.tokens.len() - self.computed.get(&asking.id).copied().unwrap_or(0)).min(CHUNK)
    }
}

impl Drafter for Willing {
    fn offers(&mut self, asking: &[Asking<'_>]) -> Vec<Offer> {
        for asking in asking {
            if let Some(computed) = self.computed.get_mut(&asking.id) {
                *computed = (*computed).min(asking.tokens.len() - 1);
            }
        }
        let offer = |asking: &Asking<'_>| Offer {
            most: asking.room.min(MAX_DRAFT_TOKENS),
            class: 0,
            behind: self.behind(asking),
        };
        asking.iter().map(offer).collect()
    }

    fn draft(&mut self, asking: &[Asking<'_>], most: &[usize]) -> Vec<Vec<u32>> {
        for (asking, most) in asking.iter().zip(most).filter(|(_, most)| **most > 0) {
            // All but the last draft token, should they hold.
            self.computed.insert(asking.id, asking.tokens.len() + most - 1);
        }
        most.iter().map(|most| vec![0; *most]).collect()
    }

    fn seconds(&self, tokens: usize) -> Option<f64> {
        Some((self.round)(tokens))
    }

    fn forget(&mut self, id: SequenceId) {
        self.computed.remove(&id);
    }
}

/// What came of a run.
#[derive(Debug, Default, Clone, Copy)]
struct Run {
    /// On average: what is left to chance is what it learns from.
    tokens: f64,
    seconds: f64,
    drafted: usize,
    /// Of the last quarter of the steps.
    late: (f64, f64),
}

impl Run {
    /// Tokens in a second.
    fn rate(&self) -> f64 {
        self.tokens / self.seconds
    }

    fn late_rate(&self) -> f64 {
        self.late.0 / self.late.1
    }
}

/// What others do to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Others {
    Away,
    /// One step in ten takes half as long again.
    Spikes,
    /// For six steps of every fifty or so, all take four tenths longer.
    Bursts,
    /// Steps are up to a tenth slower, one in fifty takes four times as long, and for [`SPELL`] steps of every two they all
    /// take half as long again.
    Spells,
}

impl Others {
    /// How many times as long as alone a step takes.
    fn slow(self, step: usize, roll: f64) -> f64 {
        let spell = if (step / SPELL).is_multiple_of(2) { 1.5 } else { 1.0 };
        match self {
            Self::Away => 1.0,
            Self::Spikes if roll < 0.1 => 1.5,
            Self::Spikes => 1.0,
            Self::Bursts if mix64((step / BURST) as u64).is_multiple_of(8) => 1.4,
            Self::Bursts => 1.0,
            Self::Spells if roll < 0.02 => 4.0 * spell,
            Self::Spells => (1.0 + 0.1 * roll) * spell,
        }
    }
}

/// Where sequences come from.
struct Crowd<'a> {
    /// How many run at once.
    sequences: usize,
    /// How many steps one stays.
    stays: usize,
    /// How often its drafts hold, by its number.
    chance: &'a dyn Fn(usize) -> f64,
    others: Others,
}

impl World {
    fn run(self, depth: Depth, steps: usize, crowd: &Crowd<'_>) -> Run {
        let sampler = Sampler::new(
            Sampling::greedy(),
            Adjustments::default(),
            Logprobs::default(),
            &[],
            Vec::new(),
            0,
        );
        let mut speculator =
            Speculator::with(Willing { round: self.round, computed: HashMap::new() }, depth);
        let mut cost = StepCost::default();
        let mut dice = 0u64;
        let mut roll = || {
            dice += 1;
            (mix64(dice) >> 11) as f64 / (1u64 << 53) as f64
        };
        let mut run = Run::default();
        // Some prompt came first.
        cost.learn(crowd.sequences, Duration::from_secs_f64((self.step)(crowd.sequences)));
        let mut ages: HashMap<usize, usize> = HashMap::new();
        // What each sequence has, and what of it was computed to draft.
        let mut lengths: HashMap<usize, (usize, usize)> = HashMap::new();
        let zeros = vec![0; PROMPT + steps * (1 + MAX_DRAFT_TOKENS)];
        let mut numbers: Vec<usize> = (0..crowd.sequences).collect();
        for step in 0..steps {
            for number in &mut numbers {
                let age = ages.entry(*number).or_insert(*number * 7 % crowd.stays);
                *age += 1;
                if *age > crowd.stays {
                    speculator.forget(SequenceId { request: *number as u64, choice: 0 });
                    *number += crowd.sequences;
                    ages.insert(*number, 0);
                }
            }
            let ask = |number: &usize| Asking {
                id: SequenceId { request: *number as u64, choice: 0 },
                tokens: &zeros[..lengths.get(number).map_or(PROMPT, |(length, _)| *length)],
                room: 100,
                sampler: &sampler,
            };
            let asking: Vec<_> = numbers.iter().map(ask).collect();
            let proposals = speculator.propose(&asking, 0, &cost);
            let drafted: usize = proposals.iter().map(Vec::len).sum();
            let size = crowd.sequences + drafted;
            let slow = crowd.others.slow(step, roll());
            cost.follow(size, Duration::from_secs_f64(slow * (self.step)(size)));
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
                let chance = (crowd.chance)(*number);
                let accepted = proposal.iter().take_while(|_| roll() < chance).count();
                let id = SequenceId { request: *number as u64, choice: 0 };
                speculator.verified(id, proposal.len(), accepted);
                let (length, computed) = lengths.entry(*number).or_insert((PROMPT, 0));
                *length += 1 + accepted;
                if !proposal.is_empty() {
                    *computed += accepted.min(proposal.len() - 1);
                }
                tokens += gained(proposal.len(), chance);
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

    fn plain(self, sequences: usize) -> f64 {
        sequences as f64 / (self.step)(sequences)
    }

    /// Tokens in a second with `k` tokens drafted always, which hold with `chance`.
    fn fixed(self, sequences: usize, k: usize, chance: f64) -> f64 {
        let seconds = (self.step)(sequences * (k + 1)) + k as f64 * (self.round)(sequences);
        sequences as f64 * gained(k, chance) / seconds
    }
}

/// Tokens of a sequence in a step with `k` draft tokens, on average.
fn gained(k: usize, chance: f64) -> f64 {
    (0..=k as i32).map(|i| chance.powi(i)).sum()
}

fn always(chance: f64) -> impl Fn(usize) -> f64 {
    move |_| chance
}

/// Every world with 1 to 32 sequences, which stay so many steps, and drafts that hold never to always: how many times as
/// fast as plain decoding 300 steps are, the slowest first.
fn everywhere(stays: usize, others: Others) -> Vec<(f64, String)> {
    let mut ratios = Vec::new();
    for (w, world) in WORLDS.into_iter().enumerate() {
        for sequences in 1..=32 {
            for tenth in 0..=10 {
                let chance = always(f64::from(tenth) / 10.0);
                let crowd = Crowd { sequences, stays, chance: &chance, others };
                let run = world.run(Depth::Adaptive, 300, &crowd);
                let ratio = run.rate() / world.plain(sequences);
                ratios.push((ratio, format!("{ratio:.3}: world {w}, {sequences} at .{tenth}")));
            }
        }
    }
    ratios.sort_by(|one, other| one.0.total_cmp(&other.0));
    ratios
}

#[test]
fn it_is_never_much_slower_than_plain() {
    for stays in [60, 10_000] {
        let (worst, name) = &everywhere(stays, Others::Away)[0];
        assert!(*worst >= 0.97, "{name}, stays {stays}");
    }
}

#[test]
fn it_is_hardly_slower_than_plain_where_others_slow_it_down() {
    // What was learned in a slow spell misleads in a fast one until it is learned again: a few steps of bad luck.
    let ratios = everywhere(200, Others::Spells);
    let (worst, name) = &ratios[0];
    assert!(*worst >= 0.95, "{name}");
    let slow = ratios.iter().filter(|(ratio, _)| *ratio < 0.97).count();
    assert!(slow * 400 <= ratios.len(), "{slow} of {}", ratios.len());
    let gained = ratios.iter().map(|(ratio, _)| ratio.ln()).sum::<f64>() / ratios.len() as f64;
    assert!(gained.exp() > 1.13, "{}", gained.exp());
}

#[test]
fn a_step_that_is_slow_by_chance_begins_no_drafts() {
    // A plain step that was slow makes drafts seem to pay, and nobody looks at plain ones while drafts are made.
    let (worst, name) = &everywhere(10_000, Others::Spikes)[0];
    assert!(*worst >= 0.97, "{name}");
}

#[test]
fn no_probe_takes_as_long_as_many_steps() {
    // After a burst larger steps look cheap, and to try one all sequences of a batch catch up at once.
    for stays in [60, 10_000] {
        let (worst, name) = &everywhere(stays, Others::Bursts)[0];
        assert!(*worst >= 0.97, "{name}, stays {stays}");
    }
}

#[test]
fn it_comes_near_the_best_fixed_number() {
    let mut worst = (f64::MAX, String::new());
    for (w, world) in WORLDS.into_iter().enumerate() {
        for sequences in [1, 2, 4, 8, 16, 32] {
            for tenth in [5, 7, 9, 10] {
                let chance = f64::from(tenth) / 10.0;
                let crowd = Crowd {
                    sequences,
                    stays: 10_000,
                    chance: &always(chance),
                    others: Others::Away,
                };
                let run = world.run(Depth::Adaptive, 1200, &crowd);
                let best = (0..=MAX_DRAFT_TOKENS)
                    .map(|k| (k, world.fixed(sequences, k, chance)))
                    .max_by(|one, other| one.1.total_cmp(&other.1));
                let (k, best) = best.unwrap_or_default();
                let ratio = run.late_rate() / best;
                let name = format!("{ratio:.3}: world {w}, {sequences} at .{tenth}, best {k}");
                if ratio < worst.0 {
                    worst = (ratio, name);
                }
            }
        }
    }
    eprintln!("worst {}", worst.1);
    // What is best pays nothing to find out, nor for catching up: where it gives a tenth more than plain, that is all of it.
    assert!(worst.0 >= 0.9, "{}", worst.1);
}

#[test]
fn nothing_is_drafted_where_every_token_costs_the_same() {
    let world = World { step: BOUND, round: FREE };
    for sequences in [1, 4, 32] {
        let crowd = Crowd { sequences, stays: 10_000, chance: &always(0.9), others: Others::Away };
        let run = world.run(Depth::Adaptive, 1000, &crowd);
        // A hundredth of the time, and what the purse held at first.
        assert!(run.drafted <= 16 * sequences, "{} at {sequences}", run.drafted);
    }
}

#[test]
fn drafts_that_never_hold_end() {
    for world in WORLDS {
        for sequences in [1, 8, 32] {
            let crowd =
                Crowd { sequences, stays: 10_000, chance: &always(0.0), others: Others::Away };
            let [early, late] = [300, 600].map(|n| world.run(Depth::Adaptive, n, &crowd).drafted);
            assert!(early <= 40 * sequences, "{early} for {sequences}");
            assert!(late - early <= 6 * sequences, "{} for {sequences}", late - early);
        }
    }
}

#[test]
fn each_sequence_is_judged_by_itself() {
    // One of two copies, the other does not.
    let world = World { step: CPU, round: FREE };
    let chance = |number: usize| if number.is_multiple_of(2) { 0.95 } else { 0.0 };
    let crowd = Crowd { sequences: 4, stays: 10_000, chance: &chance, others: Others::Away };
    let run = world.run(Depth::Adaptive, 600, &crowd);
    assert!(run.rate() > 1.6 * world.plain(4), "{}", run.rate() / world.plain(4));
}

#[test]
fn a_fixed_number_is_always_drafted() {
    let depth = "3".parse().expect("a number of tokens");
    let crowd = Crowd { sequences: 8, stays: 10_000, chance: &always(0.0), others: Others::Away };
    let run = World { step: BOUND, round: FREE }.run(depth, 50, &crowd);
    assert_eq!(run.drafted, 50 * 8 * 3);
}

#[test]
fn what_is_not_known_is_tried_with_a_token() {
    let ids: Vec<_> = (0..3).map(|request| SequenceId { request, choice: 0 }).collect();
    let offers = [0, 5, 5].map(|most| Offer { most, class: 0, behind: 1 });
    let mut cost = StepCost::default();
    let mut control = Control::new(Depth::default());
    assert_eq!(control.choose(&ids, &offers, 0, &cost, |_| None), [0, 1, 0]);
    cost.learn(64, Duration::from_millis(10));
    // What drafting takes is not known: a token for each, once, and then no more while nothing comes of it.
    assert_eq!(control.choose(&ids, &offers, 0, &cost, |_| None), [0, 1, 1]);
    ids[1..].iter().for_each(|id| control.verified(*id, 1, 0));
    assert_eq!(control.choose(&ids, &offers, 0, &cost, |_| None), [0, 0, 0]);
}

#[test]
fn drafts_are_compared_with_a_step_that_ran() {
    // The batch got smaller: what twenty take alone is not known, and may be less than what thirty take.
    let (mut cost, mut control) = (StepCost::default(), Control::new(Depth::default()));
    for tokens in [30, 60] {
        cost.learn(tokens, Duration::from_secs_f64(BOUND(tokens)));
    }
    let ids: Vec<_> = (0..20).map(|request| SequenceId { request, choice: 0 }).collect();
    let offers = [Offer { most: 4, class: 0, behind: 0 }; 20];
    assert_eq!(control.choose(&ids, &offers, 0, &cost, |_| Some(0.0)), [0; 20]);
}

#[test]
fn what_was_verified_is_counted() {
    let mut speculator =
        Speculator::with(Willing { round: FREE, computed: HashMap::new() }, Depth::default());
    let id = SequenceId { request: 1, choice: 0 };
    speculator.verified(id, 4, 2);
    speculator.verified(id, 0, 0);
    speculator.verified(id, 3, 3);
    assert_eq!(speculator.counts(), Counts { drafted: 7, accepted: 5 });
}

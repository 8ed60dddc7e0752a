//! Speculative decoding on simulated machines with known step costs and acceptance rates.

use std::{collections::HashMap, time::Duration};

use super::machine::*;
use crate::speculation::*;

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

//! Invariants of every plan, under random arrivals, lengths, forks, shared prefixes and
//! disconnections.

mod actions;
mod checks;
mod simulation;
mod tracked;

use proptest::prelude::*;
use stoker_engine::scheduler::Limits;

use self::{
    actions::{Action, Arrival, action, arrival},
    simulation::Simulation,
};
use crate::scheduling::limits;

proptest! {
    #[test]
    fn every_plan_upholds_the_invariants(
        actions in prop::collection::vec(action(), 1..80),
        max_num_seqs in 1usize..12,
        extra_tokens in 0usize..60,
        max_prompt_logits in 1usize..40,
        blocks in 10u32..60,
        max_drafts in 0usize..20,
        max_decode_slowdown in prop_oneof![Just(1.0), Just(2.0), Just(f64::INFINITY)],
    ) {
        let max_num_batched_tokens = max_num_seqs + extra_tokens;
        let limits =
            Limits { max_num_seqs, max_num_batched_tokens, max_prompt_logits, max_decode_slowdown };
        let mut simulation = Simulation::new(limits, blocks, max_drafts);
        for action in actions {
            simulation.apply(action)?;
            simulation.step()?;
        }
        simulation.run_to_end()?;
    }

    #[test]
    fn with_enough_blocks_no_block_of_a_prompt_is_computed_twice(
        arrivals in prop::collection::vec((arrival(), 0usize..4), 1..40),
        max_num_seqs in 6usize..12,
        extra_tokens in 0usize..60,
    ) {
        let limits = limits(max_num_seqs, max_num_seqs + extra_tokens);
        let mut simulation = Simulation::new(limits, 4_000, 3);
        for (arrival, steps) in arrivals {
            let arrival = Arrival { suspect: false, prompt_logits: false, ..arrival };
            let reads = Arrival { bypass: false, priority: 100, ..arrival };
            simulation.apply(Action::Arrive(reads))?;
            for _ in 0..steps {
                simulation.step()?;
            }
        }
        simulation.run_to_end()?;
        prop_assert!(simulation.computed.values().all(|times| *times == 1));
    }
}

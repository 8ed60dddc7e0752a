//! What every plan must keep to, under random arrivals, lengths, forks, shared prefixes and departures.

mod checks;
mod happenings;
mod texts;
mod world;

use proptest::prelude::*;
use stoker_engine::scheduler::Limits;

use self::{
    happenings::{Arrival, Happening, arrival, happening},
    world::World,
};
use crate::scheduling::limits;

proptest! {
    #[test]
    fn every_plan_keeps_its_promises(
        happenings in prop::collection::vec(happening(), 1..80),
        max_num_seqs in 1usize..12,
        extra_tokens in 0usize..60,
        max_prompt_logits in 1usize..40,
        blocks in 10u32..60,
        most_drafts in 0usize..20,
        max_decode_slowdown in prop_oneof![Just(1.0), Just(2.0), Just(f64::INFINITY)],
    ) {
        let max_num_batched_tokens = max_num_seqs + extra_tokens;
        let limits =
            Limits { max_num_seqs, max_num_batched_tokens, max_prompt_logits, max_decode_slowdown };
        let mut world = World::new(limits, blocks, most_drafts);
        for happening in happenings {
            world.happens(happening)?;
            world.step()?;
        }
        world.until_all_have_ended()?;
    }

    #[test]
    fn where_there_is_room_no_block_of_a_prompt_is_computed_twice(
        arrivals in prop::collection::vec((arrival(), 0usize..4), 1..40),
        max_num_seqs in 6usize..12,
        extra_tokens in 0usize..60,
    ) {
        let mut world = World::new(limits(max_num_seqs, max_num_seqs + extra_tokens), 4_000, 3);
        for (arrival, steps) in arrivals {
            let arrival = Arrival { suspect: false, prompt_logits: false, ..arrival };
            let reads = Arrival { bypass: false, priority: 100, ..arrival };
            world.happens(Happening::Arrives(reads))?;
            for _ in 0..steps {
                world.step()?;
            }
        }
        world.until_all_have_ended()?;
        prop_assert!(world.computed.values().all(|times| *times == 1));
    }
}

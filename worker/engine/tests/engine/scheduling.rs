//! What every plan must keep to, under random arrivals, lengths and departures.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use stoker_engine::{
    blocks::BlockPool,
    scheduler::{Limits, Scheduler, SequenceId, blocks_for},
};
use stoker_ops::KV_BLOCK;

/// What happens between two steps.
#[derive(Debug, Clone)]
enum Happening {
    Arrives { prompt: usize, tokens: usize },
    Leaves { which: usize },
    Nothing,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        3 => (1usize..100, 1usize..60).prop_map(|(prompt, tokens)| Happening::Arrives { prompt, tokens }),
        1 => (0usize..50).prop_map(|which| Happening::Leaves { which }),
        4 => Just(Happening::Nothing),
    ]
}

/// A sequence as the test knows it.
struct Known {
    tokens: usize,
    computed: usize,
    longest: usize,
}

proptest! {
    #[test]
    fn every_plan_keeps_its_promises(
        happenings in prop::collection::vec(happening(), 1..80),
        max_num_seqs in 1usize..12,
        extra_tokens in 0usize..60,
        blocks in 10u32..60,
    ) {
        let pool = BlockPool::new(blocks);
        let limits = Limits { max_num_seqs, max_num_batched_tokens: max_num_seqs + extra_tokens };
        let mut scheduler = Scheduler::new(limits, pool.clone());
        let mut alive: HashMap<SequenceId, Known> = HashMap::new();
        let mut next = 0;
        let mut happenings = happenings.into_iter();
        let mut steps_left = 60_000;
        let mut arrivals_over = false;

        while !(arrivals_over && alive.is_empty()) {
            steps_left -= 1;
            prop_assert!(steps_left > 0, "starved: {} never end", alive.len());
            match happenings.next() {
                Some(Happening::Arrives { prompt, tokens }) => {
                    let id = SequenceId(next);
                    next += 1;
                    let longest = prompt + tokens;
                    let accepted = scheduler.add(id, prompt, longest).is_ok();
                    prop_assert_eq!(accepted, blocks_for(longest) <= blocks as usize);
                    if accepted {
                        alive.insert(id, Known { tokens: prompt, computed: 0, longest });
                    }
                }
                Some(Happening::Leaves { which }) => {
                    let mut ids: Vec<_> = alive.keys().copied().collect();
                    ids.sort();
                    if let Some(id) = ids.get(which).copied() {
                        scheduler.remove(id);
                        alive.remove(&id);
                    }
                }
                Some(Happening::Nothing) => {}
                None => arrivals_over = true,
            }

            let plan = scheduler.plan();
            for id in &plan.preempted {
                alive.get_mut(id).unwrap().computed = 0;
                prop_assert!(plan.slices.iter().all(|s| s.id != *id || s.start == 0));
            }
            prop_assert!(alive.is_empty() || !plan.slices.is_empty(), "every step makes progress");
            prop_assert!(scheduler.running() <= max_num_seqs);
            let tokens: usize = plan.slices.iter().map(|s| s.length).sum();
            prop_assert!(tokens <= limits.max_num_batched_tokens);

            let mut held = HashSet::new();
            let mut in_tables = 0;
            for id in alive.keys() {
                let table = scheduler.table(*id);
                in_tables += table.len();
                held.extend(table.iter().map(stoker_engine::blocks::Block::number));
            }
            prop_assert_eq!(held.len(), in_tables, "no block in two tables");
            prop_assert_eq!(pool.free() + in_tables, pool.total(), "no block is lost");

            let mut planned = HashSet::new();
            for slice in &plan.slices {
                prop_assert!(planned.insert(slice.id), "at most one slice a sequence");
                let known = alive.get_mut(&slice.id).unwrap();
                prop_assert_eq!(slice.start, known.computed, "nothing is skipped or run twice");
                prop_assert!(slice.length > 0);
                known.computed += slice.length;
                prop_assert!(scheduler.table(slice.id).len() * KV_BLOCK >= known.computed);
                prop_assert_eq!(slice.samples, known.computed == known.tokens);
                scheduler.ran(slice, slice.samples);
                known.tokens += usize::from(slice.samples);
                if known.tokens >= known.longest {
                    scheduler.remove(slice.id);
                    alive.remove(&slice.id);
                }
            }
        }
        prop_assert_eq!(pool.free(), pool.total(), "every block comes home");
        prop_assert_eq!(scheduler.queued_tokens(), 0);
    }
}

#[test]
fn decoding_goes_before_prompts_and_long_prompts_come_in_chunks() {
    let limits = Limits { max_num_seqs: 4, max_num_batched_tokens: 10 };
    let mut scheduler = Scheduler::new(limits, BlockPool::new(100));
    let step = |scheduler: &mut Scheduler| {
        let plan = scheduler.plan();
        for slice in &plan.slices {
            scheduler.ran(slice, slice.samples);
        }
        plan.slices.iter().map(|s| (s.id.0, s.start, s.length, s.samples)).collect::<Vec<_>>()
    };
    scheduler.add(SequenceId(0), 3, 50).unwrap();
    assert_eq!(step(&mut scheduler), [(0, 0, 3, true)]);
    scheduler.add(SequenceId(1), 25, 50).unwrap();
    scheduler.add(SequenceId(2), 2, 50).unwrap();
    assert_eq!(step(&mut scheduler), [(0, 3, 1, true), (1, 0, 9, false)]);
    assert_eq!(step(&mut scheduler), [(0, 4, 1, true), (1, 9, 9, false)]);
    assert_eq!(step(&mut scheduler), [(0, 5, 1, true), (1, 18, 7, true), (2, 0, 2, true)]);
    assert_eq!(step(&mut scheduler), [(0, 6, 1, true), (1, 25, 1, true), (2, 2, 1, true)]);
}

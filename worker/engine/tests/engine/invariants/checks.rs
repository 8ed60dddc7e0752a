//! The invariants: which sequences run, which wait, and which blocks each holds.

use std::collections::{HashMap, HashSet};

use proptest::{prelude::*, test_runner::TestCaseError};
use stoker_engine::{
    kv_cache::{Block, blocks_for},
    scheduler::{Plan, SequenceId, Size},
};
use stoker_ops::KV_BLOCK;

use super::{
    simulation::{Simulation, sampled_rows, shareable_tokens},
    tracked::TrackedRequest,
};

impl Simulation {
    /// Checks which sequences got slots and which were preempted.
    pub fn check_order(&mut self, plan: &Plan) -> Result<(), TestCaseError> {
        let ids = self.alive.0.iter().flat_map(|(request, known)| {
            known.texts.keys().map(|choice| SequenceId { request: *request, choice: *choice })
        });
        let (now, waiting): (HashSet<_>, HashSet<_>) =
            ids.partition(|id| !self.scheduler.table(*id).is_empty());
        for id in now.difference(&self.running) {
            let (priority, is_new) = (self.priority(*id), !self.started.contains(id));
            for other in &waiting {
                let before = self.priority(*other);
                prop_assert!(before >= priority, "{:?} overtakes {:?}", id, other);
                let started = self.started.contains(other);
                prop_assert!(before > priority || !is_new || !started, "{:?} {:?}", id, other);
                let queue_key = |id: &SequenceId| &self.alive.0[&id.request].queue_key;
                let older = other.request < id.request && !started;
                let overtakes = queue_key(other) == queue_key(id) && is_new && older;
                prop_assert!(!overtakes, "{:?} overtakes {:?}", id, other);
            }
        }
        for lost in &plan.preempted {
            let priority = self.priority(*lost);
            // One that is back already, with blocks that it shares now, may leave some for others.
            let is_back = now.contains(lost);
            let last = now.iter().all(|id| {
                let is_new = !self.started.contains(id) || is_back && !self.running.contains(id);
                self.priority(*id) <= priority || is_new
            });
            prop_assert!(last, "{:?} was not the last", lost);
        }
        self.check_no_priority_inversion(plan, &now, &waiting)?;
        self.started.extend(&now);
        self.running = now;
        Ok(())
    }

    /// Checks that a sequence that a panic made suspect shares no step.
    pub fn check_isolation(
        &self,
        plan: &Plan,
        isolated: &HashSet<SequenceId>,
    ) -> Result<(), TestCaseError> {
        let alone = plan.scheduled.iter().find(|slice| isolated.contains(&slice.id));
        if let Some(alone) = alone {
            prop_assert_eq!(plan.scheduled.len(), 1, "{:?} is not alone", alone);
            prop_assert_eq!(alone.drafts, 0, "an isolated sequence has drafts");
        }
        Ok(())
    }

    /// Checks that a sequence that waits while a less urgent one runs would not fit without it, or
    /// has to wait for others anyway.
    fn check_no_priority_inversion(
        &self,
        plan: &Plan,
        now: &HashSet<SequenceId>,
        waiting: &HashSet<SequenceId>,
    ) -> Result<(), TestCaseError> {
        let Some(first) = waiting.iter().map(|id| self.priority(*id)).min() else { return Ok(()) };
        let ahead: Vec<_> = now.iter().filter(|id| self.priority(**id) <= first).collect();
        let logits = ahead.iter().any(|id| self.alive.0[&id.request].size.prompt_logits);
        // Isolated sequences leave tokens of their steps unused.
        let isolates = self.alive.0.values().any(|known| known.isolated_below > 0);
        if ahead.len() == now.len()
            || logits
            || isolates
            || self.limits.max_decode_slowdown.is_finite()
        {
            return Ok(());
        }
        let slots = |id: &SequenceId| {
            let known = &self.alive.0[&id.request];
            if known.forked { 1 } else { known.size.num_sequences as usize }
        };
        let taken: usize = ahead.iter().map(|id| slots(id)).sum();
        let held: HashSet<_> =
            ahead.iter().flat_map(|id| self.scheduler.table(**id)).map(Block::number).collect();
        let all_fit = waiting.iter().filter(|id| self.priority(**id) == first).all(|id| {
            let needed = blocks_for(self.text(*id).tokens.len());
            taken + slots(id) <= self.limits.max_num_seqs
                && held.len() + needed <= self.pool.total()
        });
        // All sequences ahead finish their work in this step, and leave some of its tokens.
        let of_ahead: Vec<_> =
            plan.scheduled.iter().filter(|slice| self.priority(slice.id) <= first).collect();
        let used: usize = of_ahead.iter().map(|slice| slice.length).sum();
        let all_done = of_ahead.iter().filter(|slice| slice.samples).count() == ahead.len();
        let has_tokens = all_done && used < self.limits.max_num_batched_tokens;
        // Or it waits for a block that a sequence with the same prefix computes.
        let alike = |id: &SequenceId| {
            let tokens = &self.text(*id).tokens;
            ahead.iter().any(|other| self.text(**other).tokens.get(..16) == tokens.get(..16))
        };
        let waits = waiting.iter().any(alike);
        prop_assert!(
            waits || !(all_fit && has_tokens),
            "a less urgent sequence runs instead of {:?}",
            waiting
        );
        Ok(())
    }

    pub fn check_limits(&self, plan: &Plan) -> Result<(), TestCaseError> {
        let progress = self.alive.0.is_empty() || !plan.scheduled.is_empty();
        prop_assert!(progress, "every step makes progress");
        prop_assert!(self.scheduler.running() <= self.limits.max_num_seqs);
        let tokens: usize = plan.scheduled.iter().map(|s| s.length).sum();
        prop_assert!(tokens <= self.limits.max_num_batched_tokens);
        let shown: usize = plan.scheduled.iter().map(|s| s.logits - sampled_rows(s)).sum();
        prop_assert!(shown <= self.limits.max_prompt_logits);
        Ok(())
    }

    /// Checks that lookups are reported once, in whole blocks, and only for requests that may read
    /// the cache.
    pub fn check_lookups(&mut self, plan: &Plan) -> Result<(), TestCaseError> {
        for lookup in &plan.lookups {
            let known = self.alive.0.get_mut(&lookup.request).unwrap();
            prop_assert!(known.lookup.replace(*lookup).is_none(), "once");
            let size = &known.size;
            prop_assert!(!size.bypass_prefix_cache && !size.prompt_logits);
            prop_assert_eq!(lookup.tokens, size.prompt);
            prop_assert!(lookup.found.is_multiple_of(KV_BLOCK) || lookup.found == size.prompt);
            prop_assert!(lookup.found <= size.prompt - usize::from(!known.recomputes));
        }
        Ok(())
    }

    /// Returns the sequences that reference each block, with its index in their tables.
    pub fn check_blocks(&self) -> Result<HashMap<u32, Vec<(SequenceId, usize)>>, TestCaseError> {
        let mut references: HashMap<u32, Vec<_>> = HashMap::new();
        for (request, known) in &self.alive.0 {
            for choice in known.texts.keys() {
                let id = SequenceId { request: *request, choice: *choice };
                for (index, block) in self.scheduler.table(id).iter().enumerate() {
                    let held = references.entry(block.number()).or_default();
                    held.push((id, index));
                    prop_assert!(
                        held.len() == 1 || block.is_cached(),
                        "only cached blocks are shared"
                    );
                }
            }
        }
        let free = self.pool.free();
        prop_assert_eq!(free + references.len(), self.pool.total(), "no block is lost");
        prop_assert!(self.pool.evictable() <= free);
        for held in references.values() {
            let content = |(id, index): (SequenceId, usize)| {
                self.text(id).contents.get((index + 1) * KV_BLOCK).copied()
            };
            let same = held.iter().all(|(id, index)| {
                *index == held[0].1
                    && (held.len() == 1 || content((*id, *index)) == content(held[0]))
            });
            prop_assert!(same, "a shared block has one index and one content: {:?}", held);
        }
        Ok(references)
    }
}

/// Checks that positions of a finished request's prompt that were not cached were computed once,
/// and so were its prompt logits.
pub fn check_no_recomputation(known: &TrackedRequest) -> Result<(), TestCaseError> {
    let Size { prompt, num_sequences, prompt_logits, .. } = known.size;
    let resumed = known.recomputes && known.shown.iter().all(|shown| *shown == 0);
    let times = usize::from(prompt_logits);
    let all_shown = known.shown[..prompt - 1].iter().all(|shown| *shown == times);
    prop_assert!(all_shown || resumed);
    if !known.recomputes {
        let (found, shared) =
            (known.lookup.map_or(0, |lookup| lookup.found), shareable_tokens(&known.size));
        prop_assert!(known.computed[..found].iter().all(|computed| *computed == 0));
        prop_assert!(known.computed[found..shared].iter().all(|computed| *computed == 1));
        let each = num_sequences as usize;
        prop_assert!(known.computed[shared..].iter().all(|computed| *computed == each));
    }
    Ok(())
}

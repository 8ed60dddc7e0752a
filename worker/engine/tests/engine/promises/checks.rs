//! The promises themselves: who runs, who waits, and who holds which block.

use std::collections::{HashMap, HashSet};

use proptest::{prelude::*, test_runner::TestCaseError};
use stoker_engine::{
    blocks::Block,
    scheduler::{Plan, SequenceId, Size, blocks_for},
};
use stoker_ops::KV_BLOCK;

use super::{
    texts::Known,
    world::{World, drawn_from, shared},
};

impl World {
    /// Who got a place, and who lost one.
    pub fn check_order(&mut self, plan: &Plan) -> Result<(), TestCaseError> {
        let ids = self.alive.0.iter().flat_map(|(request, known)| {
            known.texts.keys().map(|choice| SequenceId { request: *request, choice: *choice })
        });
        let (now, waiting): (HashSet<_>, HashSet<_>) =
            ids.partition(|id| !self.scheduler.table(*id).is_empty());
        for id in now.difference(&self.running) {
            let (priority, is_new) = (self.priority(*id), !self.begun.contains(id));
            for other in &waiting {
                let before = self.priority(*other);
                prop_assert!(before >= priority, "{:?} overtakes {:?}", id, other);
                let begun = self.begun.contains(other);
                prop_assert!(before > priority || !is_new || !begun, "{:?} {:?}", id, other);
                let queue_key = |id: &SequenceId| &self.alive.0[&id.request].queue_key;
                let older = other.request < id.request && !begun;
                let overtakes = queue_key(other) == queue_key(id) && is_new && older;
                prop_assert!(!overtakes, "{:?} overtakes {:?}", id, other);
            }
        }
        for lost in &plan.preempted {
            let priority = self.priority(*lost);
            let last =
                now.iter().all(|id| self.priority(*id) <= priority || !self.begun.contains(id));
            prop_assert!(last, "{:?} was not the last", lost);
        }
        self.check_way(plan, &now, &waiting)?;
        self.begun.extend(&now);
        self.running = now;
        Ok(())
    }

    /// A sequence that a panic makes suspect shares no step.
    pub fn check_isolation(
        &self,
        plan: &Plan,
        isolated: &HashSet<SequenceId>,
    ) -> Result<(), TestCaseError> {
        let alone = plan.slices.iter().find(|slice| isolated.contains(&slice.id));
        if let Some(alone) = alone {
            prop_assert_eq!(plan.slices.len(), 1, "{:?} is not alone", alone);
            prop_assert_eq!(alone.drafts, 0, "and nothing is guessed");
        }
        Ok(())
    }

    /// Whoever waits while somebody less urgent runs would not fit without them, or has to wait for others anyway.
    fn check_way(
        &self,
        plan: &Plan,
        now: &HashSet<SequenceId>,
        waiting: &HashSet<SequenceId>,
    ) -> Result<(), TestCaseError> {
        let Some(first) = waiting.iter().map(|id| self.priority(*id)).min() else { return Ok(()) };
        let kept: Vec<_> = now.iter().filter(|id| self.priority(**id) <= first).collect();
        let logits = kept.iter().any(|id| self.alive.0[&id.request].size.prompt_logits);
        // What runs in steps of its own uses less of them than it might.
        let isolates = self.alive.0.values().any(|known| known.isolated_below > 0);
        if kept.len() == now.len()
            || logits
            || isolates
            || self.limits.max_decode_slowdown.is_finite()
        {
            return Ok(());
        }
        let places = |id: &SequenceId| {
            let known = &self.alive.0[&id.request];
            if known.forked { 1 } else { known.size.num_sequences as usize }
        };
        let taken: usize = kept.iter().map(|id| places(id)).sum();
        let held: HashSet<_> =
            kept.iter().flat_map(|id| self.scheduler.table(**id)).map(Block::number).collect();
        let all_fit = waiting.iter().filter(|id| self.priority(**id) == first).all(|id| {
            let needed = blocks_for(self.text(*id).tokens.len());
            taken + places(id) <= self.limits.max_num_seqs
                && held.len() + needed <= self.pool.total()
        });
        // Nobody before it takes more than one step, and all of them leave some tokens of it.
        let of_kept: Vec<_> =
            plan.slices.iter().filter(|slice| self.priority(slice.id) <= first).collect();
        let used: usize = of_kept.iter().map(|slice| slice.length).sum();
        let all_done = of_kept.iter().filter(|slice| slice.samples).count() == kept.len();
        let has_tokens = all_done && used < self.limits.max_num_batched_tokens;
        // Or for what somebody computes whose prompt begins alike.
        let alike = |id: &SequenceId| {
            let tokens = &self.text(*id).tokens;
            kept.iter().any(|other| self.text(**other).tokens.get(..16) == tokens.get(..16))
        };
        let waits = waiting.iter().any(alike);
        prop_assert!(
            waits || !(all_fit && has_tokens),
            "somebody less urgent runs instead of {:?}",
            waiting
        );
        Ok(())
    }

    pub fn check_limits(&self, plan: &Plan) -> Result<(), TestCaseError> {
        let progress = self.alive.0.is_empty() || !plan.slices.is_empty();
        prop_assert!(progress, "every step makes progress");
        prop_assert!(self.scheduler.running() <= self.limits.max_num_seqs);
        let tokens: usize = plan.slices.iter().map(|s| s.length).sum();
        prop_assert!(tokens <= self.limits.max_num_batched_tokens);
        let shown: usize = plan.slices.iter().map(|s| s.logits - drawn_from(s)).sum();
        prop_assert!(shown <= self.limits.max_prompt_logits);
        Ok(())
    }

    /// What is found is told once, in whole blocks, and never to who must not read it.
    pub fn check_lookups(&mut self, plan: &Plan) -> Result<(), TestCaseError> {
        for lookup in &plan.lookups {
            let known = self.alive.0.get_mut(&lookup.request).unwrap();
            prop_assert!(known.lookup.replace(*lookup).is_none(), "once");
            let size = &known.size;
            prop_assert!(!size.bypass_prefix_cache && !size.prompt_logits);
            prop_assert_eq!(lookup.tokens, size.prompt);
            prop_assert!(lookup.found.is_multiple_of(KV_BLOCK) || lookup.found == size.prompt);
            prop_assert!(lookup.found <= size.prompt - usize::from(!known.again));
        }
        Ok(())
    }

    /// Who holds each block, and at which place of its table.
    pub fn check_blocks(&self) -> Result<HashMap<u32, Vec<(SequenceId, usize)>>, TestCaseError> {
        let mut holders: HashMap<u32, Vec<_>> = HashMap::new();
        for (request, known) in &self.alive.0 {
            for choice in known.texts.keys() {
                let id = SequenceId { request: *request, choice: *choice };
                for (place, block) in self.scheduler.table(id).iter().enumerate() {
                    let held = holders.entry(block.number()).or_default();
                    held.push((id, place));
                    prop_assert!(held.len() == 1 || block.is_kept(), "only kept blocks are shared");
                }
            }
        }
        let free = self.pool.free();
        prop_assert_eq!(free + holders.len(), self.pool.total(), "no block is lost");
        prop_assert!(self.pool.idle() <= free);
        for held in holders.values() {
            let content = |(id, place): (SequenceId, usize)| {
                self.text(id).contents.get((place + 1) * KV_BLOCK).copied()
            };
            let same = held.iter().all(|(id, place)| {
                *place == held[0].1
                    && (held.len() == 1 || content((*id, *place)) == content(held[0]))
            });
            prop_assert!(same, "in one place, by those who have the same there: {:?}", held);
        }
        Ok(holders)
    }
}

/// Of a request that is done: what was not found of its prompt was computed once, and so were its logits.
pub fn check_economy(known: &Known) -> Result<(), TestCaseError> {
    let Size { prompt, num_sequences, prompt_logits, .. } = known.size;
    let begun_elsewhere = known.again && known.shown.iter().all(|shown| *shown == 0);
    let times = usize::from(prompt_logits);
    let all_shown = known.shown[..prompt - 1].iter().all(|shown| *shown == times);
    prop_assert!(all_shown || begun_elsewhere);
    if !known.again {
        let (found, shared) = (known.lookup.map_or(0, |lookup| lookup.found), shared(&known.size));
        prop_assert!(known.computed[..found].iter().all(|computed| *computed == 0));
        prop_assert!(known.computed[found..shared].iter().all(|computed| *computed == 1));
        let each = num_sequences as usize;
        prop_assert!(known.computed[shared..].iter().all(|computed| *computed == each));
    }
    Ok(())
}

//! What is urgent takes the place of what is not.

use std::collections::HashSet;

use super::{Budget, Entry, Plan, Scheduler, blocks_for, shared_with};
use crate::blocks::Block;

impl Scheduler {
    /// Lets those in that wait and are more urgent than some that run, whose room they take.
    pub(super) fn make_way(&mut self, plan: &mut Plan, budget: &Budget) {
        while let Some(urgent) = self.waiting.first() {
            let urgent = urgent.order.priority;
            let kept = self.running.partition_point(|other| other.order.priority <= urgent);
            if kept == self.running.len() {
                return;
            }
            // Only for somebody who computes in this step: what is preempted is lost.
            let (prompts, decoding): (Vec<_>, Vec<_>) =
                self.running[..kept].iter().map(Entry::left).partition(|left| *left > 1);
            let left = budget.tokens.saturating_sub(decoding.len());
            let has_tokens =
                prompts.iter().sum::<usize>() < self.prompt_tokens(decoding.len(), left);
            if !has_tokens || !self.would_fit(kept) {
                return;
            }
            while self.let_in().is_none() {
                if self.running.len() == kept {
                    return;
                }
                self.preempt_last(plan);
            }
        }
    }

    /// Whether there would be room for the next one if only the first `kept` of those that run did.
    fn would_fit(&mut self, kept: usize) -> bool {
        let Some(entry) = self.waiting.first() else { return false };
        let kept = &self.running[..kept];
        let places = kept.iter().map(Entry::places).sum::<usize>() + entry.places();
        let held: HashSet<_> =
            kept.iter().flat_map(|e| e.table.iter().map(Block::number)).collect();
        let needed = blocks_for(entry.known) - shared_with(kept, entry).len();
        places <= self.limits.max_num_seqs && held.len() + needed <= self.blocks.total()
    }
}

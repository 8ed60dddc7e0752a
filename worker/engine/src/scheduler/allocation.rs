//! Allocation of blocks and batch slots, and preemption.

use std::collections::HashSet;

use stoker_ops::KV_BLOCK;

use super::{
    Limits, Plan, Scheduler, TokenSource,
    entry::{Entry, Order, StepBudget},
};
use crate::kv_cache::{Block, BlockPool, BlockTable, blocks_for};

impl Scheduler {
    /// Allocates blocks for all known tokens of the running sequences, the first in the order
    /// first.
    pub(super) fn allocate_running(&mut self, plan: &mut Plan) {
        let mut i = 0;
        // A sequence that lacks blocks preempts the last one, which may be itself: the list gets
        // shorter.
        while i < self.running.len() {
            self.grow_or_preempt(i, plan);
            i += 1;
        }
    }

    /// Allocates blocks for draft tokens if they are free. Draft tokens never preempt a sequence.
    pub(super) fn allocate_drafts(&mut self) {
        for entry in self.running.iter_mut().filter(|entry| entry.drafts > 0) {
            let missing = blocks_for(entry.known + entry.drafts).saturating_sub(entry.table.len());
            match self.blocks.allocate(missing) {
                Some(blocks) => entry.table.extend(blocks),
                None => entry.drafts = entry.table.len() * KV_BLOCK - entry.known,
            }
        }
    }

    /// Admits the next waiting sequence if it fits, and returns its index in the running order.
    pub(super) fn admit(&mut self, plan: &mut Plan, source: &dyn TokenSource) -> Option<usize> {
        let Self { running, blocks, limits, waiting, .. } = self;
        let table = allocate_table(running, blocks, *limits, waiting.first()?, plan, source)?;
        let mut entry = waiting.pop()?;
        entry.start(table, plan);
        if entry.order.age == Order::NEW {
            entry.order.age = self.next_age();
        }
        let index = self.running.partition_point(|other| other.order < entry.order);
        self.running.insert(index, entry);
        Some(index)
    }

    /// Admits waiting sequences that are more urgent than some running ones, which it preempts for
    /// them.
    pub(super) fn preempt_for_waiting(
        &mut self,
        plan: &mut Plan,
        budget: &StepBudget,
        source: &dyn TokenSource,
    ) {
        while let Some(urgent) = self.waiting.first() {
            let urgent = urgent.order.priority;
            let retained = self.running.partition_point(|other| other.order.priority <= urgent);
            // Only if the admitted sequence computes in this step: the work of a preempted one is
            // lost.
            let (decoding, prefilling): (Vec<_>, Vec<_>) =
                self.running[..retained].iter().partition(|entry| entry.is_decoding());
            let available = budget.tokens.saturating_sub(decoding.len());
            let needed: usize = prefilling.iter().map(|entry| entry.remaining()).sum();
            let has_tokens = needed < self.prefill_tokens(decoding.len(), available);
            if retained == self.running.len() || !has_tokens || !self.would_fit(retained, source) {
                return;
            }
            while self.admit(plan, source).is_none() {
                if self.running.len() == retained {
                    return;
                }
                self.preempt_last(plan);
            }
        }
    }

    /// Whether the next waiting sequence would fit if only the first `retained` sequences ran.
    fn would_fit(&mut self, retained: usize, source: &dyn TokenSource) -> bool {
        let Some(entry) = self.waiting.first() else { return false };
        let retained = &self.running[..retained];
        let num_seqs = retained.iter().map(Entry::num_seqs).sum::<usize>() + entry.num_seqs();
        let cached = entry.readable_prefix(source).find(&self.blocks);
        let tables = retained.iter().map(|entry| &entry.table).chain([&cached]);
        let used: HashSet<_> = tables.flat_map(|table| table.iter().map(Block::number)).collect();
        let needed = used.len() + blocks_for(entry.known) - cached.len();
        num_seqs <= self.limits.max_num_seqs && needed <= self.blocks.total()
    }

    /// Allocates blocks for all known tokens of the `i`th sequence. Preempts the last ones if
    /// necessary, which may be the `i`th itself.
    fn grow_or_preempt(&mut self, i: usize, plan: &mut Plan) {
        while let Some(entry) = self.running.get_mut(i) {
            // The table may be longer than needed, by blocks that were allocated for draft tokens.
            let missing = blocks_for(entry.known).saturating_sub(entry.table.len());
            if let Some(blocks) = self.blocks.allocate(missing) {
                entry.table.extend(blocks);
                return;
            }
            self.preempt_last(plan);
        }
    }

    fn preempt_last(&mut self, plan: &mut Plan) {
        if let Some(mut entry) = self.running.pop() {
            entry.reset();
            plan.preempted.push(entry.id);
            self.waiting.push_started(entry);
        }
    }
}

/// Allocates blocks for all known tokens of a waiting sequence, the first of them from the prefix
/// cache. `None` if its blocks or batch slots are not free, or while a running sequence computes
/// its next block: then it waits and reads that block from the cache.
fn allocate_table(
    running: &[Entry],
    blocks: &BlockPool,
    limits: Limits,
    entry: &Entry,
    plan: &Plan,
    source: &dyn TokenSource,
) -> Option<BlockTable> {
    let num_seqs = running.iter().map(Entry::num_seqs).sum::<usize>() + entry.num_seqs();
    if num_seqs > limits.max_num_seqs {
        return None;
    }
    let prefix = entry.readable_prefix(source);
    let mut table = prefix.find(blocks);
    let computes_next_block = |other: &Entry| {
        // A sequence whose prompt logits are requested may be slow.
        !other.wants_prompt_logits()
            && prefix.is_extended_by(&table, other.prefix(source), &other.table)
            && plan.scheduled.iter().any(|scheduled| scheduled.id == other.id)
    };
    if running.iter().any(computes_next_block) {
        return None;
    }
    table.extend(blocks.allocate(blocks_for(entry.known) - table.len())?);
    Some(table)
}

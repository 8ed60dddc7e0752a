//! Who gets blocks and places, and who gives them up.

use std::collections::HashSet;

use stoker_ops::KV_BLOCK;

use super::{
    Limits, Plan, Scheduler, TokenSource, blocks_for,
    entry::{Budget, Entry, Order},
    prefix::{found, is_computed_now},
};
use crate::blocks::{Block, BlockPool, Table};

impl Scheduler {
    /// Blocks for all that is known of those that run, the first in the order first.
    pub(super) fn make_room(&mut self, plan: &mut Plan) {
        let mut i = 0;
        // Whoever lacks blocks takes those of the last, who may be itself: the list gets shorter.
        while i < self.running.len() {
            self.grow_or_preempt(i, plan);
            i += 1;
        }
    }

    /// Blocks for drafts, if they are free: nobody gives up a block for a guess.
    pub(super) fn make_room_for_drafts(&mut self) {
        for entry in self.running.iter_mut().filter(|entry| entry.drafts > 0) {
            let missing = blocks_for(entry.known + entry.drafts).saturating_sub(entry.table.len());
            match self.blocks.take(missing) {
                Some(blocks) => entry.table.extend(blocks),
                None => entry.drafts = entry.table.len() * KV_BLOCK - entry.known,
            }
        }
    }

    /// Lets the next one in, if there is room. Answers its place in the order.
    pub(super) fn let_in(&mut self, plan: &mut Plan, texts: &dyn TokenSource) -> Option<usize> {
        let Self { running, blocks, limits, waiting, .. } = self;
        let table = room_for(running, blocks, *limits, waiting.first()?, plan, texts)?;
        let mut entry = waiting.pop()?;
        entry.enter(table, plan);
        if entry.order.age == Order::NEW {
            entry.order.age = self.begin();
        }
        let place = self.running.partition_point(|other| other.order < entry.order);
        self.running.insert(place, entry);
        Some(place)
    }

    /// Lets those in that wait and are more urgent than some that run, whose room they take.
    pub(super) fn make_way(&mut self, plan: &mut Plan, budget: &Budget, texts: &dyn TokenSource) {
        while let Some(urgent) = self.waiting.first() {
            let urgent = urgent.order.priority;
            let kept = self.running.partition_point(|other| other.order.priority <= urgent);
            // Only for somebody who computes in this step: what is preempted is lost.
            let (decoding, prompts): (Vec<_>, Vec<_>) =
                self.running[..kept].iter().partition(|entry| entry.decodes());
            let left = budget.tokens.saturating_sub(decoding.len());
            let wanted: usize = prompts.iter().map(|entry| entry.left()).sum();
            let has_tokens = wanted < self.prompt_tokens(decoding.len(), left);
            if kept == self.running.len() || !has_tokens || !self.would_fit(kept, texts) {
                return;
            }
            while self.let_in(plan, texts).is_none() {
                if self.running.len() == kept {
                    return;
                }
                self.preempt_last(plan);
            }
        }
    }

    /// Whether there would be room for the next one if only the first `kept` of those that run did.
    fn would_fit(&mut self, kept: usize, texts: &dyn TokenSource) -> bool {
        let Some(entry) = self.waiting.first() else { return false };
        let kept = &self.running[..kept];
        let places = kept.iter().map(Entry::places).sum::<usize>() + entry.places();
        let found = found(&self.blocks, entry, texts);
        let tables = kept.iter().map(|entry| &entry.table).chain([&found]);
        let held: HashSet<_> = tables.flat_map(|table| table.iter().map(Block::number)).collect();
        let needed = held.len() + blocks_for(entry.known) - found.len();
        places <= self.limits.max_num_seqs && needed <= self.blocks.total()
    }

    /// Makes room for all known tokens of the `i`th, if need be at the cost of the last, which may be the `i`th itself.
    fn grow_or_preempt(&mut self, i: usize, plan: &mut Plan) {
        while let Some(entry) = self.running.get_mut(i) {
            // There may be more than enough: blocks that were taken for drafts.
            let missing = blocks_for(entry.known).saturating_sub(entry.table.len());
            if let Some(blocks) = self.blocks.take(missing) {
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
            self.waiting.push_begun(entry);
        }
    }
}

/// Blocks for all that is known of a sequence that waits, the first of them from the cache, if they and its places are
/// free beside those that run. None as well while another computes just what it needs next: then it waits and reads that.
fn room_for(
    running: &[Entry],
    blocks: &BlockPool,
    limits: Limits,
    entry: &Entry,
    plan: &Plan,
    texts: &dyn TokenSource,
) -> Option<Table> {
    let places = running.iter().map(Entry::places).sum::<usize>() + entry.places();
    if places > limits.max_num_seqs {
        return None;
    }
    let mut table = found(blocks, entry, texts);
    if is_computed_now(running, entry, &table, plan, texts) {
        return None;
    }
    table.extend(blocks.take(blocks_for(entry.known) - table.len())?);
    Some(table)
}

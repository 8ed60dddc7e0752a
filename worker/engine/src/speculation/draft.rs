//! A smaller model that drafts, in the same machinery as the model that is served: a runner, a pool of blocks, and a table
//! for each sequence.
//!
//! Each round computes one more token for every sequence that drafts, all in one step of the draft model. The first
//! computes what it has not seen yet as well: what the last step drew, and the prompt, in bounded chunks, so that a long one
//! never holds the others up. Draft tokens that did not hold leave keys and values behind, which are written over.

mod cached;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, time::Instant};

use cached::Cached;
use stoker_ops::{KV_BLOCK, draw::Draw};

use super::{Asking, Drafter, MAX_DRAFT_TOKENS, Offer, common};
use crate::{
    blocks::BlockPool,
    cost::StepCost,
    model::Model,
    runner::{BatchEntry, Runner, StepOutput},
    scheduler::{SequenceId, blocks_for},
};

/// Tokens of sequences that are behind, in one step.
const CHUNK: usize = 128;
/// What every sequence has to compute that drafted before: the last of its draft tokens, and the one that was drawn.
const USUAL: usize = 2;

/// Drafts with a model.
pub(super) struct DraftModel {
    runner: Runner,
    blocks: BlockPool,
    caches: HashMap<SequenceId, Cached>,
    cost: StepCost,
    /// Drafts so far: the clock by which caches were used.
    now: u64,
}

/// A sequence's part in the first round.
struct Turn {
    /// Among those that ask.
    index: usize,
    /// Tokens to compute.
    start: usize,
    end: usize,
}

impl DraftModel {
    /// With a cache of `blocks`. A GPU gets ready to draft for up to `sequences` at once.
    pub(super) fn new(model: Model, blocks: usize, sequences: usize) -> Self {
        let blocks = BlockPool::new(u32::try_from(blocks).unwrap_or(u32::MAX));
        let mut runner = Runner::new(model, blocks.total());
        runner.prepare(sequences);
        let (caches, cost) = (HashMap::new(), StepCost::default());
        Self { runner, blocks, caches, cost, now: 0 }
    }

    /// Tokens of a sequence that are still to be computed.
    fn behind(&self, asking: &Asking<'_>) -> usize {
        asking.tokens.len() - self.caches.get(&asking.id).map_or(0, |cached| cached.computed)
    }

    /// What the first round computes. Whoever is least behind goes first, so that those who are ready never wait.
    fn turns(&mut self, asking: &[Asking<'_>], most: &[usize]) -> Vec<Turn> {
        self.now += 1;
        let mut wanted: Vec<_> = (0..asking.len()).filter(|i| most[*i] > 0).collect();
        wanted.sort_by_key(|i| self.behind(&asking[*i]));
        for i in &wanted {
            if let Some(cached) = self.caches.get_mut(&asking[*i].id) {
                cached.used = self.now;
            }
        }
        let mut left = CHUNK + USUAL * wanted.len();
        let mut turns = Vec::new();
        for index in wanted {
            let Asking { id, tokens, .. } = asking[index];
            if !self.caches.contains_key(&id) {
                self.caches.insert(id, self.begin(asking, &asking[index]));
            }
            let start = self.caches[&id].computed;
            let end = tokens.len().min(start + left);
            // The last draft token is not computed.
            let drafts = if end == tokens.len() { most[index] - 1 } else { 0 };
            if end > start && self.grow(id, end + drafts) {
                left -= end - start;
                turns.push(Turn { index, start, end });
            }
        }
        turns
    }

    /// A cache for a sequence that has none. Of what it has in common with another of its request, they share the blocks
    /// that are full.
    fn begin(&self, asking: &[Asking<'_>], new: &Asking<'_>) -> Cached {
        let shared = |other: &Asking<'_>| {
            let cached = self.caches.get(&other.id)?;
            // The last token is computed in any case, and nobody else may read what it writes.
            let same = common(other.tokens, &new.tokens[..new.tokens.len().saturating_sub(1)]);
            Some((same.min(cached.computed) / KV_BLOCK, cached))
        };
        let siblings = asking.iter().filter(|other| other.id.request == new.id.request);
        let (full, table) = siblings
            .filter_map(shared)
            .max_by_key(|(full, _)| *full)
            .map_or_else(Default::default, |(full, cached)| (full, cached.table[..full].to_vec()));
        Cached { table, computed: full * KV_BLOCK, used: self.now, ..Cached::default() }
    }

    /// Makes a sequence's table long enough for so many tokens, if need be at the cost of those who were not used for
    /// longest. False if the blocks are all in use.
    fn grow(&mut self, id: SequenceId, tokens: usize) -> bool {
        let needed = blocks_for(tokens);
        while needed <= self.blocks.total() {
            let Some(cached) = self.caches.get_mut(&id) else { return false };
            let missing = needed.saturating_sub(cached.table.len());
            if let Some(blocks) = self.blocks.take(missing) {
                cached.table.extend(blocks);
                return true;
            }
            let idle = self.caches.iter().filter(|(_, cached)| cached.used < self.now);
            let Some(oldest) = idle.min_by_key(|(id, cached)| (cached.used, **id)) else {
                return false;
            };
            let oldest = *oldest.0;
            self.caches.remove(&oldest);
        }
        false
    }

    /// Computes the turns; a row for each.
    fn first_round(&mut self, asking: &[Asking<'_>], turns: &[Turn]) -> StepOutput {
        let vocab = self.runner.model().config.vocab_size;
        let draw = |turn: &Turn| {
            let Asking { tokens, sampler, .. } = &asking[turn.index];
            // Nobody looks at what comes after half a prompt.
            let whole = turn.end == tokens.len();
            if whole { sampler.on_device(turn.end, vocab) } else { Some(Draw::GREEDY) }
        };
        let draws: Vec<_> = turns.iter().map(draw).collect();
        let part = |(turn, draw): (&Turn, _)| {
            let Asking { id, tokens, .. } = &asking[turn.index];
            BatchEntry {
                ids: &tokens[turn.start..turn.end],
                start: turn.start,
                table: &self.caches[id].table,
                logits: 1,
                draws: Option::as_slice(draw),
            }
        };
        let parts: Vec<_> = turns.iter().zip(&draws).map(part).collect();
        run(&mut self.runner, &mut self.cost, &parts)
    }

    /// Computes the last draft token of each of `open`; a row for each.
    fn next_round(
        &mut self,
        asking: &[Asking<'_>],
        open: &[usize],
        proposals: &[Vec<u32>],
    ) -> StepOutput {
        let vocab = self.runner.model().config.vocab_size;
        let end = |index: usize| asking[index].tokens.len() + proposals[index].len();
        let draw = |index: &usize| asking[*index].sampler.on_device(end(*index), vocab);
        let draws: Vec<_> = open.iter().map(draw).collect();
        let part = |(index, draw): (&usize, _)| {
            let drafts = &proposals[*index];
            BatchEntry {
                ids: &drafts[drafts.len() - 1..],
                start: end(*index) - 1,
                table: &self.caches[&asking[*index].id].table,
                logits: 1,
                draws: Option::as_slice(draw),
            }
        };
        let parts: Vec<_> = open.iter().zip(&draws).map(part).collect();
        run(&mut self.runner, &mut self.cost, &parts)
    }
}

/// Runs a step of the draft model, and learns what it took.
fn run(runner: &mut Runner, cost: &mut StepCost, parts: &[BatchEntry]) -> StepOutput {
    let begun = Instant::now();
    let outcome = runner.run(parts);
    cost.follow(parts.iter().map(|part| part.ids.len()).sum(), begun.elapsed());
    outcome
}

impl Drafter for DraftModel {
    fn offers(&mut self, asking: &[Asking<'_>]) -> Vec<Offer> {
        let offer = |asking: &Asking<'_>| {
            if let Some(cached) = self.caches.get_mut(&asking.id) {
                cached.settle(asking.tokens);
            }
            let most = asking.room.min(MAX_DRAFT_TOKENS);
            Offer { most, class: 0, behind: self.behind(asking).min(CHUNK) }
        };
        asking.iter().map(offer).collect()
    }

    fn draft(&mut self, asking: &[Asking<'_>], most: &[usize]) -> Vec<Vec<u32>> {
        let mut proposals = vec![Vec::new(); asking.len()];
        let turns = self.turns(asking, most);
        if turns.is_empty() {
            return proposals;
        }
        let mut outcome = self.first_round(asking, &turns);
        let mut open = Vec::new();
        for turn in &turns {
            let Asking { id, tokens, .. } = &asking[turn.index];
            if let Some(cached) = self.caches.get_mut(id) {
                cached.computed = turn.end;
            }
            // None for those that go on catching up.
            open.push((turn.end == tokens.len()).then_some(turn.index));
        }
        loop {
            let mut more = Vec::new();
            for (index, row) in open.iter().zip(outcome.rows()) {
                let Some(index) = *index else { continue };
                let Asking { tokens, sampler, .. } = &asking[index];
                let drafts = &mut proposals[index];
                // Not a number: nothing more from this one.
                let Some(token) = sampler.draft(row, tokens.len() + drafts.len()) else { continue };
                drafts.push(token);
                if drafts.len() < most[index] {
                    more.push(index);
                }
            }
            if more.is_empty() {
                return proposals;
            }
            outcome = self.next_round(asking, &more, &proposals);
            for index in &more {
                if let Some(cached) = self.caches.get_mut(&asking[*index].id) {
                    cached.drafts.extend(proposals[*index].last());
                }
            }
            open = more.into_iter().map(Some).collect();
        }
    }

    fn seconds(&self, tokens: usize) -> Option<f64> {
        self.cost.seconds(tokens)
    }

    fn forget(&mut self, id: SequenceId) {
        self.caches.remove(&id);
    }
}

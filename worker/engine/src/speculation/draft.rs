//! Drafting with a smaller model, on the same components as the served model: a runner, a block
//! pool, and a block table for each sequence.
//!
//! Each round computes one more token for every drafting sequence, all in one step of the draft
//! model. The first round also computes the backlog: the tokens drawn in the last step, and the
//! prompt in bounded chunks, so that a long prompt never delays the others. Keys and values of
//! rejected draft tokens are overwritten.

mod draft_cache;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, time::Instant};

use draft_cache::DraftCache;
use stoker_ops::{KV_BLOCK, draw::Draw};

use super::{DraftCapacity, DraftRequest, Drafter, MAX_DRAFT_TOKENS, common_prefix};
use crate::{
    cost::StepCost,
    kv_cache::{BlockPool, blocks_for},
    model::Model,
    runner::{BatchEntry, Runner},
    scheduler::SequenceId,
    step_output::StepOutput,
};

/// Maximum number of backlog tokens in one step, besides the usual ones.
const CHUNK: usize = 128;
/// Backlog of a sequence that drafted in the last step: its last draft token, and the drawn one.
const USUAL_BACKLOG: usize = 2;

/// Drafts tokens with a model.
pub(super) struct DraftModel {
    runner: Runner,
    blocks: BlockPool,
    caches: HashMap<SequenceId, DraftCache>,
    cost: StepCost,
    /// Number of drafts so far: the time scale of [`DraftCache::last_used`].
    clock: u64,
}

/// Backlog tokens of a sequence that the first round computes.
struct CatchUp {
    /// Index of the draft request.
    index: usize,
    /// First token to compute.
    start: usize,
    /// Position after the last token to compute.
    end: usize,
}

impl DraftModel {
    /// Creates a drafter with a KV cache of `blocks` blocks. A GPU is prepared to draft for up to
    /// `sequences` sequences at once.
    pub(super) fn new(model: Model, blocks: usize, sequences: usize) -> Self {
        let blocks = BlockPool::new(u32::try_from(blocks).unwrap_or(u32::MAX));
        let mut runner = Runner::new(model, blocks.total());
        runner.prepare(sequences);
        let (caches, cost) = (HashMap::new(), StepCost::default());
        Self { runner, blocks, caches, cost, clock: 0 }
    }

    /// Number of tokens of a sequence that are not computed.
    fn backlog(&self, request: &DraftRequest<'_>) -> usize {
        request.tokens.len() - self.caches.get(&request.id).map_or(0, |cache| cache.computed)
    }

    /// Plans the first round. The sequences with the smallest backlog come first, so that those
    /// that are ready never wait.
    fn plan_catch_ups(
        &mut self,
        requests: &[DraftRequest<'_>],
        max_tokens: &[usize],
    ) -> Vec<CatchUp> {
        self.clock += 1;
        let mut drafting: Vec<_> = (0..requests.len()).filter(|i| max_tokens[*i] > 0).collect();
        drafting.sort_by_key(|i| self.backlog(&requests[*i]));
        for i in &drafting {
            if let Some(cache) = self.caches.get_mut(&requests[*i].id) {
                cache.last_used = self.clock;
            }
        }
        let mut budget = CHUNK + USUAL_BACKLOG * drafting.len();
        let mut catch_ups = Vec::new();
        for index in drafting {
            let DraftRequest { id, tokens, .. } = requests[index];
            if !self.caches.contains_key(&id) {
                self.caches.insert(id, self.new_cache(requests, &requests[index]));
            }
            let start = self.caches[&id].computed;
            let end = tokens.len().min(start + budget);
            // The last draft token is not computed.
            let drafts = if end == tokens.len() { max_tokens[index] - 1 } else { 0 };
            if end > start && self.grow(id, end + drafts) {
                budget -= end - start;
                catch_ups.push(CatchUp { index, start, end });
            }
        }
        catch_ups
    }

    /// Creates the cache of a sequence. It shares the full blocks of the longest prefix that it has
    /// in common with another sequence of its request.
    fn new_cache(&self, requests: &[DraftRequest<'_>], new: &DraftRequest<'_>) -> DraftCache {
        let shared = |other: &DraftRequest<'_>| {
            let cache = self.caches.get(&other.id)?;
            // The last token is always computed, into a block that is not shared.
            let readable = &new.tokens[..new.tokens.len().saturating_sub(1)];
            let same = common_prefix(other.tokens, readable);
            Some((same.min(cache.computed) / KV_BLOCK, cache))
        };
        let siblings = requests.iter().filter(|other| other.id.request == new.id.request);
        let (full, table) = siblings
            .filter_map(shared)
            .max_by_key(|(full, _)| *full)
            .map_or_else(Default::default, |(full, cache)| (full, cache.table[..full].to_vec()));
        DraftCache {
            table,
            computed: full * KV_BLOCK,
            last_used: self.clock,
            ..DraftCache::default()
        }
    }

    /// Extends the block table of a sequence to `tokens` tokens. Evicts the least recently used
    /// caches if necessary. Returns false if all blocks are in use.
    fn grow(&mut self, id: SequenceId, tokens: usize) -> bool {
        let needed = blocks_for(tokens);
        while needed <= self.blocks.total() {
            let Some(cache) = self.caches.get_mut(&id) else { return false };
            let missing = needed.saturating_sub(cache.table.len());
            if let Some(blocks) = self.blocks.allocate(missing) {
                cache.table.extend(blocks);
                return true;
            }
            let unused = self.caches.iter().filter(|(_, cache)| cache.last_used < self.clock);
            let Some(oldest) = unused.min_by_key(|(id, cache)| (cache.last_used, **id)) else {
                return false;
            };
            let oldest = *oldest.0;
            self.caches.remove(&oldest);
        }
        false
    }

    /// Computes `catch_ups`. Returns a row for each.
    fn first_round(&mut self, requests: &[DraftRequest<'_>], catch_ups: &[CatchUp]) -> StepOutput {
        let vocab = self.runner.model().config.vocab_size;
        let draw = |catch_up: &CatchUp| {
            let DraftRequest { tokens, sampler, .. } = &requests[catch_up.index];
            // The row after an incomplete prompt is not used.
            let complete = catch_up.end == tokens.len();
            if complete { sampler.on_device(catch_up.end, vocab) } else { Some(Draw::GREEDY) }
        };
        let draws: Vec<_> = catch_ups.iter().map(draw).collect();
        let entry = |(catch_up, draw): (&CatchUp, _)| {
            let DraftRequest { id, tokens, .. } = &requests[catch_up.index];
            BatchEntry {
                ids: &tokens[catch_up.start..catch_up.end],
                start: catch_up.start,
                table: &self.caches[id].table,
                logits: 1,
                draws: Option::as_slice(draw),
            }
        };
        let entries: Vec<_> = catch_ups.iter().zip(&draws).map(entry).collect();
        run(&mut self.runner, &mut self.cost, &entries)
    }

    /// Computes the last draft token of each request in `open`. Returns a row for each.
    fn next_round(
        &mut self,
        requests: &[DraftRequest<'_>],
        open: &[usize],
        proposals: &[Vec<u32>],
    ) -> StepOutput {
        let vocab = self.runner.model().config.vocab_size;
        let end = |index: usize| requests[index].tokens.len() + proposals[index].len();
        let draw = |index: &usize| requests[*index].sampler.on_device(end(*index), vocab);
        let draws: Vec<_> = open.iter().map(draw).collect();
        let entry = |(index, draw): (&usize, _)| {
            let drafts = &proposals[*index];
            BatchEntry {
                ids: &drafts[drafts.len() - 1..],
                start: end(*index) - 1,
                table: &self.caches[&requests[*index].id].table,
                logits: 1,
                draws: Option::as_slice(draw),
            }
        };
        let entries: Vec<_> = open.iter().zip(&draws).map(entry).collect();
        run(&mut self.runner, &mut self.cost, &entries)
    }
}

/// Runs a step of the draft model, and records its duration.
fn run(runner: &mut Runner, cost: &mut StepCost, entries: &[BatchEntry]) -> StepOutput {
    let started = Instant::now();
    let output = runner.run(entries);
    cost.observe_decode(entries.iter().map(|entry| entry.ids.len()).sum(), started.elapsed());
    output
}

impl Drafter for DraftModel {
    fn capacities(&mut self, requests: &[DraftRequest<'_>]) -> Vec<DraftCapacity> {
        let capacity = |request: &DraftRequest<'_>| {
            if let Some(cache) = self.caches.get_mut(&request.id) {
                cache.reconcile(request.tokens);
            }
            let max_tokens = request.max_drafts.min(MAX_DRAFT_TOKENS);
            DraftCapacity { max_tokens, class: 0, backlog: self.backlog(request).min(CHUNK) }
        };
        requests.iter().map(capacity).collect()
    }

    fn draft(&mut self, requests: &[DraftRequest<'_>], max_tokens: &[usize]) -> Vec<Vec<u32>> {
        let mut proposals = vec![Vec::new(); requests.len()];
        let catch_ups = self.plan_catch_ups(requests, max_tokens);
        if catch_ups.is_empty() {
            return proposals;
        }
        let mut output = self.first_round(requests, &catch_ups);
        let mut open = Vec::new();
        for catch_up in &catch_ups {
            let DraftRequest { id, tokens, .. } = &requests[catch_up.index];
            if let Some(cache) = self.caches.get_mut(id) {
                cache.computed = catch_up.end;
            }
            // `None` for sequences that still have a backlog.
            open.push((catch_up.end == tokens.len()).then_some(catch_up.index));
        }
        loop {
            let mut more = Vec::new();
            for (index, row) in open.iter().zip(output.rows()) {
                let Some(index) = *index else { continue };
                let DraftRequest { tokens, sampler, .. } = &requests[index];
                let drafts = &mut proposals[index];
                // The logits are not finite: no more draft tokens for this sequence.
                let Some(token) = sampler.draft(row, tokens.len() + drafts.len()) else { continue };
                drafts.push(token);
                if drafts.len() < max_tokens[index] {
                    more.push(index);
                }
            }
            if more.is_empty() {
                return proposals;
            }
            output = self.next_round(requests, &more, &proposals);
            for index in &more {
                if let Some(cache) = self.caches.get_mut(&requests[*index].id) {
                    cache.drafts.extend(proposals[*index].last());
                }
            }
            open = more.into_iter().map(Some).collect();
        }
    }

    fn round_seconds(&self, tokens: usize) -> Option<f64> {
        self.cost.seconds(tokens)
    }

    fn release(&mut self, id: SequenceId) {
        self.caches.remove(&id);
    }
}

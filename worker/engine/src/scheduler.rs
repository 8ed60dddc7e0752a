//! Which tokens of which sequences run in the next step. Pure: integers in, a plan out.
//!
//! Iteration-level batching. Every step decodes one token for each sequence that is past its prompt, and the tokens that
//! somebody drafts to follow it, then fills the token budget with chunks of prompts, then lets new requests in, first come,
//! first served. What the cache has of a sequence when it enters need not be computed. It gets the blocks of everything else
//! as well, so only decoding and
//! forks can run out of them; then the youngest gives all of its blocks back and is computed again later.
//!
//! A request for several sequences runs as one until its prompt is computed; then it forks. The forks
//! share the full blocks of the prompt, which nobody writes any more, and each computes the rest, one to
//! [`KV_BLOCK`] tokens, into a block of its own. Their places in the batch are kept from the beginning.
//!
//! The oldest sequence is never preempted, and one sequence alone always fits ([`Scheduler::add`]
//! checks), so every step makes progress and nobody starves.

mod entry;
mod prefix;

use std::collections::VecDeque;

use entry::{Budget, Entry};
pub use prefix::{Lookup, Texts};
use stoker_ops::KV_BLOCK;

use crate::blocks::{Block, BlockPool, Scope};

/// Names a sequence within its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId {
    /// The request that it belongs to.
    pub request: u64,
    /// Which of the request's sequences it is, from 0.
    pub choice: u32,
}

/// Limits of one step.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Sequences in the batch.
    pub max_num_seqs: usize,
    /// Tokens in a step; at least `max_num_seqs`, so that all can decode.
    pub max_num_batched_tokens: usize,
    /// Rows of prompt logits in a step, at least 1: they are large, and come beside those that are drawn from.
    pub max_prompt_logits: usize,
}

/// What a request is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    /// Tokens of the prompt, at least one.
    pub prompt: usize,
    /// Tokens that each sequence may grow to, prompt included.
    pub longest: usize,
    /// Sequences that continue the prompt, at least one.
    pub num_sequences: u32,
    /// Whether logits are wanted at every position of the prompt.
    pub prompt_logits: bool,
    /// Who shares what is computed of it.
    pub scope: Scope,
    /// Whether it must not read what others have computed.
    pub bypass_prefix_cache: bool,
}

/// One sequence's part in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Whose.
    pub id: SequenceId,
    /// Position of the first token to run.
    pub start: usize,
    /// Tokens to run.
    pub length: usize,
    /// How many of the last of them want their logits: those of the prompt that were asked for and not had
    /// yet, and the one to draw from.
    pub logits: usize,
    /// Whether they end what is known of the sequence, so that a token is to be drawn.
    pub samples: bool,
    /// How many of the last of them are guesses, which follow what is known: as long as a draw is what was guessed, the next
    /// one is to be drawn too.
    pub drafts: usize,
}

/// What to do in a step, and who was moved by a call to [`Scheduler::plan`].
#[derive(Debug, Default)]
pub struct Plan {
    /// What to run.
    pub slices: Vec<Slice>,
    /// Sequences that gave their blocks back and will be computed again.
    pub preempted: Vec<SequenceId>,
    /// What was looked for in the cache.
    pub lookups: Vec<Lookup>,
}

/// Plans steps.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    blocks: BlockPool,
    /// In order of arrival, the oldest first.
    running: Vec<Entry>,
    /// Those that have begun first, then in order of arrival; all younger than those that run. They hold no blocks.
    waiting: VecDeque<Entry>,
}

/// A request that could never run to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// One sequence alone would not fit.
    #[error("{needed} KV blocks needed, {total} exist")]
    TooLong {
        /// Blocks for its longest state.
        needed: usize,
        /// Blocks there are.
        total: usize,
    },
    /// They would not fit into one batch.
    #[error("{wanted} sequences wanted, a batch has {limit}")]
    TooMany {
        /// Sequences of the request.
        wanted: u32,
        /// Sequences in a batch.
        limit: usize,
    },
}

impl Scheduler {
    /// An empty schedule over `blocks`.
    pub fn new(limits: Limits, blocks: BlockPool) -> Self {
        Self { limits, blocks, running: Vec::new(), waiting: VecDeque::new() }
    }

    /// The limits of a step.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Queues a request. Its sequences are named by their choice, in order.
    pub fn add(&mut self, request: u64, size: Size) -> Result<(), Refused> {
        self.check(&size)?;
        self.waiting.push_back(Entry::new(request, &size));
        Ok(())
    }

    /// Queues sequences of a request that were begun elsewhere, as if they had been preempted here: choices, and how many
    /// tokens each has, prompt included. Somebody reads their answers already, so they go before those that have not
    /// begun.
    pub fn resume(
        &mut self,
        request: u64,
        size: Size,
        open: &[(u32, usize)],
    ) -> Result<(), Refused> {
        self.check(&size)?;
        let entry = |(i, (choice, known)): (usize, &(u32, usize))| {
            Entry::resumed(SequenceId { request, choice: *choice }, &size, *known, i == 0)
        };
        let begun = |entry: &Entry| entry.known > entry.prompt;
        let first_new = self.waiting.iter().position(|e| !begun(e)).unwrap_or(self.waiting.len());
        let new = self.waiting.split_off(first_new);
        self.waiting.extend(open.iter().enumerate().map(entry));
        self.waiting.extend(new);
        Ok(())
    }

    /// Refuses what could never run to its end.
    pub fn check(&self, size: &Size) -> Result<(), Refused> {
        let (needed, total) = (blocks_for(size.longest), self.blocks.total());
        if needed > total {
            return Err(Refused::TooLong { needed, total });
        }
        let (wanted, limit) = (size.num_sequences, self.limits.max_num_seqs);
        if wanted as usize > limit {
            return Err(Refused::TooMany { wanted, limit });
        }
        Ok(())
    }

    /// Plans the next step. Call [`Self::ran`] for each slice that ran.
    pub fn plan(&mut self, texts: &dyn Texts) -> Plan {
        let mut plan = Plan::default();
        let mut budget = Budget {
            tokens: self.limits.max_num_batched_tokens,
            prompt_logits: self.limits.max_prompt_logits,
        };
        self.make_room(&mut plan);
        self.make_room_for_drafts();
        self.plan_decode(&mut plan, &mut budget);
        self.plan_prefill(&mut plan, &mut budget);
        self.admit(&mut plan, &mut budget, texts);
        plan
    }

    /// Blocks for all that is known of those that run, the oldest first.
    fn make_room(&mut self, plan: &mut Plan) {
        let mut i = 0;
        // Whoever lacks blocks takes those of the youngest, who may be itself: the list gets shorter.
        while i < self.running.len() {
            self.grow_or_preempt(i, plan);
            i += 1;
        }
    }

    /// Blocks for drafts, if they are free: nobody gives up a block for a guess.
    fn make_room_for_drafts(&mut self) {
        for entry in self.running.iter_mut().filter(|entry| entry.drafts > 0) {
            let missing = blocks_for(entry.known + entry.drafts).saturating_sub(entry.table.len());
            match self.blocks.take(missing) {
                Some(blocks) => entry.table.extend(blocks),
                None => entry.drafts = entry.table.len() * KV_BLOCK - entry.known,
            }
        }
    }

    /// One token for each sequence that decodes, and the drafts that there are tokens left for.
    fn plan_decode(&self, plan: &mut Plan, budget: &mut Budget) {
        let decoding = || self.running.iter().filter(|entry| entry.decodes());
        let mut spare = budget.tokens.saturating_sub(decoding().count());
        for entry in decoding() {
            let drafts = entry.drafts.min(spare);
            spare -= drafts;
            entry.decode(drafts, plan, budget);
        }
    }

    /// Chunks of prompts that are under way.
    fn plan_prefill(&self, plan: &mut Plan, budget: &mut Budget) {
        for entry in self.running.iter().filter(|entry| !entry.decodes()) {
            entry.run(plan, budget);
        }
    }

    /// New requests, as long as there are tokens, places and blocks for them.
    fn admit(&mut self, plan: &mut Plan, budget: &mut Budget, texts: &dyn Texts) {
        while budget.tokens > 0 {
            let Some(mut entry) = self.waiting.pop_front() else { return };
            let Some(table) = self.room_for(&entry, plan, texts) else {
                self.waiting.push_front(entry);
                return;
            };
            entry.enter(table, plan);
            entry.run(plan, budget);
            self.running.push(entry);
        }
    }

    /// Makes room for all known tokens of the `i`th, if need be at the cost of the youngest, which may be the
    /// `i`th itself.
    fn grow_or_preempt(&mut self, i: usize, plan: &mut Plan) {
        while let Some(entry) = self.running.get_mut(i) {
            // There may be more than enough: blocks that were taken for drafts.
            let missing = blocks_for(entry.known).saturating_sub(entry.table.len());
            if let Some(blocks) = self.blocks.take(missing) {
                entry.table.extend(blocks);
                return;
            }
            self.preempt_youngest(plan);
        }
    }

    fn preempt_youngest(&mut self, plan: &mut Plan) {
        if let Some(mut entry) = self.running.pop() {
            entry.reset();
            plan.preempted.push(entry.id);
            self.waiting.push_front(entry);
        }
    }

    /// Sequences that decode, unless they are preempted in the next plan: those that drafts may be proposed for.
    pub fn decoding(&self) -> impl Iterator<Item = SequenceId> {
        self.running.iter().filter(|entry| entry.decodes()).map(|entry| entry.id)
    }

    /// Has the next plan run up to so many guesses with a sequence's newest token, as far as there is room.
    pub fn draft(&mut self, id: SequenceId, drafts: usize) {
        if let Some(entry) = self.running.iter_mut().find(|entry| entry.id == id) {
            entry.drafts = drafts;
        }
    }

    /// Records that a slice ran, and that so many tokens were drawn after it: none if it does not sample, else one, and one
    /// more for each draft that held; the last one `texts` need not have yet. Blocks that are full now are kept, and a prompt
    /// that is computed now forks.
    pub fn ran(&mut self, slice: &Slice, drawn: usize, texts: &dyn Texts) {
        let Some(i) = self.running.iter().position(|e| e.id == slice.id) else { return };
        let forks = self.running[i].ran(slice, drawn, texts.tokens(slice.id));
        // As old as the one they come from.
        self.running.splice(i + 1..i + 1, forks);
    }

    /// Forgets a sequence, wherever it stands; its blocks go home.
    pub fn remove(&mut self, id: SequenceId) {
        self.retain(|other| other != id);
    }

    /// Forgets all sequences of a request.
    pub fn remove_request(&mut self, request: u64) {
        self.retain(|other| other.request != request);
    }

    fn retain(&mut self, stays: impl Fn(SequenceId) -> bool) {
        self.running.retain(|e| stays(e.id));
        self.waiting.retain(|e| stays(e.id));
    }

    /// The blocks of a running sequence, in order.
    pub fn table(&self, id: SequenceId) -> &[Block] {
        self.running.iter().find(|e| e.id == id).map_or(&[], |e| &e.table)
    }

    /// Sequences in the batch, with those whose places are kept.
    pub fn running(&self) -> usize {
        self.running.iter().map(Entry::places).sum()
    }

    /// Sequences that wait for a place.
    pub fn waiting(&self) -> usize {
        self.waiting.iter().map(Entry::places).sum()
    }

    /// Tokens still to compute, of all sequences.
    pub fn queued_tokens(&self) -> usize {
        self.running.iter().chain(&self.waiting).map(Entry::left_with_forks).sum()
    }
}

/// Blocks that hold `tokens`.
pub fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(KV_BLOCK)
}

//! Which tokens of which sequences run in the next step. Pure: integers in, a plan out.
//!
//! Iteration-level batching. Every step decodes one token for each sequence that is past its prompt, and the tokens
//! that somebody drafts to follow it, then fills the token budget with chunks of prompts, of those that run and of those
//! that are let in for it, in one order: the most urgent first, then the oldest. Who is next of those that wait, `queue`
//! says; how long the prompts' part may be while others wait for their next token, `pace`; who gets which blocks,
//! `room`. What the cache has of a sequence when it enters need not be computed (`prefix`). It gets the blocks of
//! everything else as well, so only decoding and forks can run out of them; then the last in the order gives all of its
//! blocks back and is computed again later. It does so as well for a request that is more urgent and finds no room.
//!
//! A request for several sequences runs as one until its prompt is computed; then it forks. The forks
//! share the full blocks of the prompt, which nobody writes any more, and each computes the rest, one to
//! [`KV_BLOCK`] tokens, into a block of its own. Their places in the batch are kept from the beginning.
//!
//! The first in the order is never preempted, and one sequence alone always fits ([`Scheduler::add`] checks), so every
//! step makes progress. Sequences keep their place in the order for good, and nobody takes the place of one that is as
//! urgent: whoever was preempted cannot preempt back, and within a priority nobody starves.

mod entry;
mod estimate;
mod fastest;
mod isolation;
mod pace;
mod prefix;
mod queue;
mod room;

use std::time::Duration;

use entry::{Budget, Entry, Order};
use fastest::Fastest;
pub use isolation::ISOLATED_TOKENS;
pub use pace::MIN_PROMPT_TOKENS;
pub use prefix::{Lookup, TokenSource};
pub use queue::QueueKey;
use queue::WaitQueue;
use stoker_ops::KV_BLOCK;

use crate::{
    blocks::{Block, BlockPool, Scope},
    cost::StepCost,
};

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
    /// A step takes at most so many times what it would without prompts, at least 1. Nobody who decodes waits longer.
    pub max_decode_slowdown: f64,
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
    /// Whether a step with it panicked elsewhere.
    pub suspect: bool,
}

/// One sequence's part in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduledSequence {
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
    /// How many of the last of them are guesses, which follow what is known: as long as a draw is what was guessed, the
    /// next one is to be drawn too.
    pub drafts: usize,
}

/// What to do in a step, and who was moved by a call to [`Scheduler::plan`].
#[derive(Debug, Default)]
pub struct Plan {
    /// What to run.
    pub slices: Vec<ScheduledSequence>,
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
    /// In order: the most urgent first, and of those the one that began first.
    running: Vec<Entry>,
    waiting: WaitQueue,
    /// Sequences that have begun, which is how old the next one is.
    begun: u64,
    cost: StepCost,
    fastest: Fastest,
    /// The last step was one that an isolated sequence had to itself.
    isolated_last: bool,
}

/// A request that could never run to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
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
    /// It could not be in time.
    #[error(
        "its prompt and `min_tokens` take {} ms at the least, what is before it {} ms, and its deadline is in {} ms",
        .own.as_millis(), .ahead.as_millis(), .left.as_millis()
    )]
    TooLate {
        /// How long what is before it takes at the least.
        ahead: Duration,
        /// How long it takes by itself.
        own: Duration,
        /// How long it may take.
        left: Duration,
    },
}

impl Scheduler {
    /// An empty schedule over `blocks`.
    pub fn new(limits: Limits, blocks: BlockPool) -> Self {
        let (running, waiting, cost, fastest) = Default::default();
        let isolated_last = false;
        Self { limits, blocks, running, waiting, begun: 0, cost, fastest, isolated_last }
    }

    /// The limits of a step.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Queues a request. Its sequences are named by their choice, in order.
    pub fn add(
        &mut self,
        request: u64,
        size: Size,
        queue_key: &QueueKey,
    ) -> Result<(), AdmissionError> {
        self.check(&size)?;
        let answers = (size.longest - size.prompt).saturating_mul(size.num_sequences as usize);
        let tokens = size.prompt.saturating_add(answers);
        let entry = Entry::new(request, &size, queue_key.priority);
        self.waiting.push(entry, &queue_key.tenant, tokens);
        Ok(())
    }

    /// The same for a request that another engine had accepted: it goes before those that have not begun.
    pub fn add_first(
        &mut self,
        request: u64,
        size: Size,
        queue_key: &QueueKey,
    ) -> Result<(), AdmissionError> {
        self.check(&size)?;
        let mut entry = Entry::new(request, &size, queue_key.priority);
        entry.order.age = self.begin();
        self.waiting.push_begun(entry);
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
        queue_key: &QueueKey,
    ) -> Result<(), AdmissionError> {
        self.check(&size)?;
        let age = self.begin();
        for (i, (choice, known)) in open.iter().enumerate() {
            let order = Order { priority: queue_key.priority, age, choice: *choice };
            self.waiting.push_begun(Entry::resumed(request, order, &size, *known, i == 0));
        }
        Ok(())
    }

    /// Refuses what could never run to its end.
    pub fn check(&self, size: &Size) -> Result<(), AdmissionError> {
        let (needed, total) = (blocks_for(size.longest), self.blocks.total());
        if needed > total {
            return Err(AdmissionError::TooLong { needed, total });
        }
        let (wanted, limit) = (size.num_sequences, self.limits.max_num_seqs);
        if wanted as usize > limit {
            return Err(AdmissionError::TooMany { wanted, limit });
        }
        Ok(())
    }

    /// Plans the next step. Call [`Self::ran`] for each slice that ran.
    pub fn plan(&mut self, texts: &dyn TokenSource) -> Plan {
        let mut plan = Plan::default();
        let mut budget = Budget {
            tokens: self.limits.max_num_batched_tokens,
            prompt_logits: self.limits.max_prompt_logits,
        };
        self.make_room(&mut plan);
        if self.isolates_next() {
            self.plan_isolated(&mut plan, &mut budget);
            return plan;
        }
        self.isolated_last = false;
        self.make_way(&mut plan, &budget, texts);
        self.plan_decode(&mut plan, &mut budget);
        self.pace(&plan, &mut budget);
        self.plan_prompts(&mut plan, &mut budget, texts);
        self.plan_drafts(&mut plan);
        if plan.slices.is_empty() {
            self.plan_isolated(&mut plan, &mut budget);
        }
        plan
    }

    /// A step took so long.
    pub fn learn(&mut self, step: &[ScheduledSequence], took: Duration) {
        let tokens = step.iter().map(|slice| slice.length).sum();
        self.fastest.learn(tokens, took);
        if step.iter().all(|slice| slice.length == 1 + slice.drafts) {
            self.cost.follow(tokens, took);
        } else {
            self.cost.learn(tokens, took);
        }
    }

    /// What steps cost, as far as it was seen.
    pub fn cost(&self) -> &StepCost {
        &self.cost
    }

    /// One token for each sequence that decodes.
    fn plan_decode(&self, plan: &mut Plan, budget: &mut Budget) {
        let shared = self.running.iter().filter(|entry| !entry.is_isolated());
        let decoding = shared.filter(|entry| entry.decodes());
        decoding.for_each(|entry| entry.decode(plan, budget));
    }

    /// The drafts that there are tokens and blocks left for: nobody who knows what comes next waits for a guess.
    fn plan_drafts(&mut self, plan: &mut Plan) {
        self.make_room_for_drafts();
        let used: usize = plan.slices.iter().map(|slice| slice.length).sum();
        let mut spare = self.limits.max_num_batched_tokens.saturating_sub(used);
        for entry in self.running.iter().filter(|entry| entry.drafts > 0) {
            let Some(slice) = plan.slices.iter_mut().find(|slice| slice.id == entry.id) else {
                continue;
            };
            slice.drafts = entry.drafts.min(spare);
            slice.length += slice.drafts;
            slice.logits += slice.drafts;
            spare -= slice.drafts;
        }
    }

    /// Chunks of prompts, of those that run and those that wait, in one order.
    fn plan_prompts(&mut self, plan: &mut Plan, budget: &mut Budget, texts: &dyn TokenSource) {
        let (mut i, mut open) = (0, true);
        while budget.tokens > 0 {
            let rest = &self.running[i..];
            let computes_prompt = |entry: &Entry| !entry.decodes() && !entry.is_isolated();
            i += rest.iter().position(computes_prompt).unwrap_or(rest.len());
            let running = self.running.get(i).map(|entry| entry.order.priority);
            let waiting = self.waiting.first().map(|entry| entry.order.priority);
            let is_next = waiting.is_some_and(|first| running.is_none_or(|next| first < next));
            if open && is_next {
                // Whoever is next waits for room, and nobody overtakes.
                let Some(entered) = self.let_in(plan, texts) else {
                    open = false;
                    continue;
                };
                if !self.running[entered].is_isolated() {
                    self.running[entered].run(plan, budget);
                }
                // It stands before the one that is next, which is less urgent.
                i += 1;
            } else if let Some(entry) = self.running.get(i) {
                entry.run(plan, budget);
                i += 1;
            } else {
                return;
            }
        }
    }

    /// The age of one that begins now.
    fn begin(&mut self) -> u64 {
        self.begun += 1;
        self.begun
    }

    /// Sequences that decode, unless they are preempted in the next plan: those that drafts may be proposed for.
    pub fn decoding(&self) -> impl Iterator<Item = SequenceId> {
        let shared = self.running.iter().filter(|entry| !entry.is_isolated());
        shared.filter(|entry| entry.decodes()).map(|entry| entry.id)
    }

    /// Has the next plan run up to so many guesses with a sequence's newest token, as far as there is room.
    pub fn draft(&mut self, id: SequenceId, drafts: usize) {
        if let Some(entry) = self.running.iter_mut().find(|entry| entry.id == id) {
            entry.drafts = drafts;
        }
    }

    /// Records that a slice ran, and that so many tokens were drawn after it: none if it does not sample, else one, and one
    /// more for each draft that held; the last one `texts` need not have yet. Blocks that are full now are kept, and a
    /// prompt that is computed now forks.
    pub fn ran(&mut self, slice: &ScheduledSequence, drawn: usize, texts: &dyn TokenSource) {
        let Some(i) = self.running.iter().position(|e| e.id == slice.id) else { return };
        let forks = self.running[i].ran(slice, drawn, texts.tokens(slice.id));
        // They are as old as the one they come from.
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
        self.running.iter().chain(self.waiting.iter()).map(Entry::left_with_forks).sum()
    }
}

/// Blocks that hold `tokens`.
pub fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(KV_BLOCK)
}

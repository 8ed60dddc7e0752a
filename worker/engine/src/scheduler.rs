//! Decides which tokens of which sequences run in the next step. Pure: integers in, a plan out.
//!
//! Iteration-level batching. Every step decodes one token for each sequence that is past its
//! prompt, with the tokens drafted to follow it. The rest of the token budget goes to chunks of
//! prompts, of running sequences and of newly admitted ones, in one order: the most urgent first,
//! then the oldest. `queue` orders the waiting sequences, `prefill_budget` limits the prompt tokens
//! while other sequences decode, and `allocation` assigns blocks. Tokens that the cache has when a
//! sequence is admitted are not computed. A sequence gets the blocks of all its other
//! known tokens as well, so only decoding and forks can run out of blocks. Then the last sequence
//! in the order releases all of its blocks and is recomputed later. It does so too for a more
//! urgent request that does not fit.
//!
//! A request for several sequences runs as one until its prompt is computed; then it forks. The
//! forks share the full blocks of the prompt, which are not written any more, and each computes the
//! rest, one to [`stoker_ops::KV_BLOCK`] tokens, into a block of its own. Their slots in the batch
//! are reserved from the start.
//!
//! The first in the order is never preempted, and one sequence alone always fits
//! ([`Scheduler::add`] checks), so every step makes progress. Sequences keep their position in the
//! order, and a sequence is never preempted for one of the same priority: a preempted sequence
//! cannot preempt back, and within a priority no sequence starves.

mod allocation;
mod deadline;
mod entry;
mod isolation;
mod prefill_budget;
mod queue;
mod step_lower_bound;

use std::time::Duration;

pub use entry::ISOLATED_TOKENS;
use entry::{Entry, Order, StepBudget};
pub use prefill_budget::MIN_PROMPT_TOKENS;
pub use queue::QueueKey;
use queue::WaitQueue;
use step_lower_bound::StepLowerBound;

use crate::{
    cost::StepCost,
    kv_cache::{Block, BlockPool, Lookup, Prefix, Scope, SequenceTokens, blocks_for},
};

/// Access to the tokens of sequences, from which block keys are made.
pub trait TokenSource {
    /// Returns all known tokens of a sequence: the prompt, then everything drawn.
    fn tokens(&self, id: SequenceId) -> SequenceTokens<'_>;
}

/// Identifies a sequence within its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId {
    /// Number of the request.
    pub request: u64,
    /// Index of the sequence within the request, from 0.
    pub choice: u32,
}

/// Limits of one step.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum number of sequences in the batch.
    pub max_num_seqs: usize,
    /// Maximum number of tokens in a step; at least `max_num_seqs`, so that all sequences can
    /// decode.
    pub max_num_batched_tokens: usize,
    /// Maximum number of prompt logits rows in a step, at least 1. They are large, and come in
    /// addition to the rows that tokens are drawn from.
    pub max_prompt_logits: usize,
    /// Maximum ratio of the duration of a step to that of a decode-only step, at least 1. It bounds
    /// how much prompts delay decoding sequences.
    pub max_decode_slowdown: f64,
}

/// Size of a request, and what else its scheduling depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    /// Number of prompt tokens, at least 1.
    pub prompt: usize,
    /// Maximum length of each sequence in tokens, prompt included.
    pub longest: usize,
    /// Number of completions of the prompt, at least 1.
    pub num_sequences: u32,
    /// Whether logits are needed at every position of the prompt.
    pub prompt_logits: bool,
    /// Scope in which its cached blocks are shared.
    pub scope: Scope,
    /// Whether it must not read blocks that other requests have cached.
    pub bypass_prefix_cache: bool,
    /// Whether it was part of a step that panicked on another worker.
    pub suspect: bool,
}

/// The tokens of one sequence that run in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduledSequence {
    /// The sequence.
    pub id: SequenceId,
    /// Position of the first token to run.
    pub start: usize,
    /// Number of tokens to run.
    pub length: usize,
    /// Number of trailing tokens whose logits are needed: those of the prompt that were requested
    /// and not computed yet, and those that tokens are drawn from.
    pub logits: usize,
    /// Whether the tokens reach the end of the known sequence, so that a token is drawn.
    pub samples: bool,
    /// Number of trailing tokens that are draft tokens, after the known ones. As long as the drawn
    /// token equals the draft token, the next one is drawn too.
    pub drafts: usize,
}

/// What runs in a step, and what [`Scheduler::plan`] changed.
#[derive(Debug, Default)]
pub struct Plan {
    /// Sequences that run.
    pub scheduled: Vec<ScheduledSequence>,
    /// Sequences that released their blocks and will be recomputed.
    pub preempted: Vec<SequenceId>,
    /// Prefix cache lookups of newly admitted requests.
    pub lookups: Vec<Lookup>,
}

/// Plans steps.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    blocks: BlockPool,
    /// Running sequences in order: by priority, then by age.
    running: Vec<Entry>,
    waiting: WaitQueue,
    /// Number of requests admitted so far; the source of [`Order::age`].
    num_admitted: u64,
    cost: StepCost,
    lower_bound: StepLowerBound,
    /// Whether the last step ran one isolated sequence alone.
    isolated_last: bool,
}

/// Reason why a request is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// One sequence alone does not fit into the KV cache.
    #[error("a sequence needs {needed} KV blocks, the cache has {total}")]
    TooLong {
        /// Blocks at its maximum length.
        needed: usize,
        /// Blocks in the cache.
        total: usize,
    },
    /// Its sequences do not fit into one batch.
    #[error("{requested} sequences are requested, a batch has at most {limit}")]
    TooMany {
        /// Sequences of the request.
        requested: u32,
        /// Maximum number of sequences in a batch.
        limit: usize,
    },
    /// Its deadline cannot be met.
    #[error(
        "its prompt and `min_tokens` take at least {} ms, requests ahead of it {} ms, and its deadline is in {} ms",
        .own.as_millis(), .ahead.as_millis(), .remaining.as_millis()
    )]
    TooLate {
        /// Minimum time that requests ahead of it take.
        ahead: Duration,
        /// Minimum time that the request alone takes.
        own: Duration,
        /// Time until its deadline.
        remaining: Duration,
    },
}

impl Scheduler {
    /// Creates a scheduler without requests over `blocks`.
    pub fn new(limits: Limits, blocks: BlockPool) -> Self {
        let (running, waiting, cost, lower_bound) = Default::default();
        let isolated_last = false;
        Self { limits, blocks, running, waiting, num_admitted: 0, cost, lower_bound, isolated_last }
    }

    /// The limits of a step.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Queues a request. Its sequences get the choices from 0, in order.
    pub fn add(
        &mut self,
        request: u64,
        size: Size,
        queue_key: &QueueKey,
    ) -> Result<(), AdmissionError> {
        self.check(&size)?;
        let completions = (size.longest - size.prompt).saturating_mul(size.num_sequences as usize);
        let tokens = size.prompt.saturating_add(completions);
        let entry = Entry::new(request, &size, queue_key.priority);
        self.waiting.push(entry, &queue_key.tenant, tokens);
        Ok(())
    }

    /// Queues a request that another engine had accepted, ahead of requests that have not been
    /// admitted yet.
    pub fn add_first(
        &mut self,
        request: u64,
        size: Size,
        queue_key: &QueueKey,
    ) -> Result<(), AdmissionError> {
        self.check(&size)?;
        let mut entry = Entry::new(request, &size, queue_key.priority);
        entry.order.age = self.next_age();
        self.waiting.push_started(entry);
        Ok(())
    }

    /// Queues sequences of a request that another engine had started, as if they had been preempted
    /// here. `open` has their choices and lengths in tokens, prompt included. Their responses are
    /// being streamed, so they go ahead of requests that have not been admitted yet.
    pub fn resume(
        &mut self,
        request: u64,
        size: Size,
        open: &[(u32, usize)],
        queue_key: &QueueKey,
    ) -> Result<(), AdmissionError> {
        self.check(&size)?;
        let age = self.next_age();
        for (i, (choice, known)) in open.iter().enumerate() {
            let order = Order { priority: queue_key.priority, age, choice: *choice };
            self.waiting.push_started(Entry::resumed(request, order, &size, *known, i == 0));
        }
        Ok(())
    }

    /// Rejects a request that could never complete.
    pub fn check(&self, size: &Size) -> Result<(), AdmissionError> {
        let (needed, total) = (blocks_for(size.longest), self.blocks.total());
        if needed > total {
            return Err(AdmissionError::TooLong { needed, total });
        }
        let (requested, limit) = (size.num_sequences, self.limits.max_num_seqs);
        if requested as usize > limit {
            return Err(AdmissionError::TooMany { requested, limit });
        }
        Ok(())
    }

    /// Plans the next step. Call [`Self::on_complete`] for each sequence that ran.
    pub fn plan(&mut self, source: &dyn TokenSource) -> Plan {
        let mut plan = Plan::default();
        let mut budget = StepBudget {
            tokens: self.limits.max_num_batched_tokens,
            prompt_logits: self.limits.max_prompt_logits,
        };
        self.allocate_running(&mut plan);
        if self.isolates_next() {
            self.plan_isolated(&mut plan, &mut budget);
            return plan;
        }
        self.isolated_last = false;
        self.preempt_for_waiting(&mut plan, &budget, source);
        self.plan_decode(&mut plan, &mut budget);
        self.limit_prefill(&plan, &mut budget);
        self.plan_prefill(&mut plan, &mut budget, source);
        self.plan_drafts(&mut plan);
        if plan.scheduled.is_empty() {
            self.plan_isolated(&mut plan, &mut budget);
        }
        plan
    }

    /// Records the duration of a step.
    pub fn observe(&mut self, step: &[ScheduledSequence], took: Duration) {
        let tokens = step.iter().map(|scheduled| scheduled.length).sum();
        self.lower_bound.observe(tokens, took);
        if step.iter().all(|scheduled| scheduled.length == 1 + scheduled.drafts) {
            self.cost.observe_decode(tokens, took);
        } else {
            self.cost.observe(tokens, took);
        }
    }

    /// The cost of steps, estimated from those that ran.
    pub fn cost(&self) -> &StepCost {
        &self.cost
    }

    /// Plans one token for each decoding sequence.
    fn plan_decode(&self, plan: &mut Plan, budget: &mut StepBudget) {
        let shared = self.running.iter().filter(|entry| !entry.is_isolated());
        let decoding = shared.filter(|entry| entry.is_decoding());
        decoding.for_each(|entry| entry.schedule_decode(plan, budget));
    }

    /// Adds draft tokens as far as the step has tokens and blocks left: they never displace known
    /// tokens.
    fn plan_drafts(&mut self, plan: &mut Plan) {
        self.allocate_drafts();
        let used: usize = plan.scheduled.iter().map(|scheduled| scheduled.length).sum();
        let mut spare = self.limits.max_num_batched_tokens.saturating_sub(used);
        for entry in self.running.iter().filter(|entry| entry.drafts > 0) {
            let Some(scheduled) = plan.scheduled.iter_mut().find(|s| s.id == entry.id) else {
                continue;
            };
            scheduled.drafts = entry.drafts.min(spare);
            scheduled.length += scheduled.drafts;
            scheduled.logits += scheduled.drafts;
            spare -= scheduled.drafts;
        }
    }

    /// Plans chunks of prompts, of running and waiting sequences, in one order.
    fn plan_prefill(&mut self, plan: &mut Plan, budget: &mut StepBudget, source: &dyn TokenSource) {
        let (mut i, mut open) = (0, true);
        while budget.tokens > 0 {
            let rest = &self.running[i..];
            let is_prefilling = |entry: &Entry| !entry.is_decoding() && !entry.is_isolated();
            i += rest.iter().position(is_prefilling).unwrap_or(rest.len());
            let running = self.running.get(i).map(|entry| entry.order.priority);
            let waiting = self.waiting.first().map(|entry| entry.order.priority);
            let is_next = waiting.is_some_and(|first| running.is_none_or(|next| first < next));
            if open && is_next {
                // If the next sequence does not fit, no other is admitted ahead of it.
                let Some(admitted) = self.admit(plan, source) else {
                    open = false;
                    continue;
                };
                if !self.running[admitted].is_isolated() {
                    self.running[admitted].schedule_prefill(plan, budget);
                }
                // It was inserted before the running one at `i`, which is less urgent.
                i += 1;
            } else if let Some(entry) = self.running.get(i) {
                entry.schedule_prefill(plan, budget);
                i += 1;
            } else {
                return;
            }
        }
    }

    /// Returns the age of a request that is admitted now.
    fn next_age(&mut self) -> u64 {
        self.num_admitted += 1;
        self.num_admitted
    }

    /// Sequences that decode in the next plan unless preempted: those that tokens may be drafted
    /// for.
    pub fn decoding(&self) -> impl Iterator<Item = SequenceId> {
        let shared = self.running.iter().filter(|entry| !entry.is_isolated());
        shared.filter(|entry| entry.is_decoding()).map(|entry| entry.id)
    }

    /// Has the next plan run up to `drafts` draft tokens after a sequence's newest token, as far as
    /// the step has room.
    pub fn draft(&mut self, id: SequenceId, drafts: usize) {
        if let Some(entry) = self.running.iter_mut().find(|entry| entry.id == id) {
            entry.drafts = drafts;
        }
    }

    /// Records that `scheduled` ran and that `drawn` tokens were drawn after it: none if it does
    /// not sample, else one and one for each accepted draft token. `source` may lack the last drawn
    /// token. Caches the blocks that are full now, and forks the request once its prompt is
    /// computed.
    pub fn on_complete(
        &mut self,
        scheduled: &ScheduledSequence,
        drawn: usize,
        source: &dyn TokenSource,
    ) {
        let Some(i) = self.running.iter().position(|e| e.id == scheduled.id) else { return };
        let forks = self.running[i].on_complete(scheduled, drawn, source.tokens(scheduled.id));
        // Forks have the age of their origin.
        self.running.splice(i + 1..i + 1, forks);
    }

    /// Removes a running or waiting sequence and releases its blocks.
    pub fn remove(&mut self, id: SequenceId) {
        self.retain(|other| other != id);
    }

    /// Removes all sequences of a request.
    pub fn remove_request(&mut self, request: u64) {
        self.retain(|other| other.request != request);
    }

    fn retain(&mut self, keep: impl Fn(SequenceId) -> bool) {
        self.running.retain(|e| keep(e.id));
        self.waiting.retain(|e| keep(e.id));
    }

    /// The blocks of a running sequence, in order.
    pub fn table(&self, id: SequenceId) -> &[Block] {
        self.running.iter().find(|e| e.id == id).map_or(&[], |e| &e.table)
    }

    /// Number of sequences in the batch, forks with a reserved slot included.
    pub fn running(&self) -> usize {
        self.running.iter().map(Entry::num_seqs).sum()
    }

    /// Number of sequences that wait for admission.
    pub fn waiting(&self) -> usize {
        self.waiting.iter().map(Entry::num_seqs).sum()
    }

    /// Minimum number of prompt tokens to compute, whatever the cache has by then: only those of
    /// the last block if a running or waiting sequence has the same first block.
    pub fn min_prefill_tokens(
        &self,
        scope: &Scope,
        prompt: &[u32],
        source: &dyn TokenSource,
    ) -> usize {
        let readable = SequenceTokens::from(&prompt[..prompt.len().saturating_sub(1)]);
        let others = self.running.iter().chain(self.waiting.iter());
        let others = others.map(|other| other.prefix(source));
        prompt.len() - Prefix { scope, tokens: readable }.findable(&self.blocks, others)
    }

    /// Number of tokens still to compute, of all sequences.
    pub fn queued_tokens(&self) -> usize {
        self.running.iter().chain(self.waiting.iter()).map(Entry::remaining_with_forks).sum()
    }
}

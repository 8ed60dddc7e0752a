//! Which tokens of which sequences run in the next step. Pure: integers in, a plan out.
//!
//! Iteration-level batching. Every step decodes one token for each sequence that is past its prompt,
//! then fills the token budget with chunks of prompts, then lets new sequences in, first come, first
//! served. A sequence gets the blocks of everything it has to compute when it enters, so only decoding
//! can run out of them; then the youngest gives all of its blocks back and is computed again later.
//!
//! The oldest sequence is never preempted, and one sequence alone always fits ([`Scheduler::add`]
//! checks), so every step makes progress and nobody starves.

use std::collections::VecDeque;

use stoker_ops::KV_BLOCK;

use crate::blocks::{Block, BlockPool};

/// Names a sequence within its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// Limits of one step.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Sequences in the batch.
    pub max_num_seqs: usize,
    /// Tokens in a step; at least `max_num_seqs`, so that all can decode.
    pub max_num_batched_tokens: usize,
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
    /// Whether the last of them ends what is known of the sequence, so that a token is to be drawn.
    pub samples: bool,
}

/// Sequences that a call to [`Scheduler::plan`] moved.
#[derive(Debug, Default)]
pub struct Plan {
    /// What to run.
    pub slices: Vec<Slice>,
    /// Sequences that gave their blocks back and will be computed again.
    pub preempted: Vec<SequenceId>,
}

/// A sequence as the scheduler sees it.
#[derive(Debug)]
struct Entry {
    id: SequenceId,
    /// Tokens known: prompt and generated.
    known: usize,
    /// Tokens whose keys and values are in the cache.
    computed: usize,
    table: Vec<Block>,
}

/// Plans steps.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    blocks: BlockPool,
    /// In order of arrival, the oldest first.
    running: Vec<Entry>,
    /// In order of arrival; the preempted stand at the front, since they are older.
    waiting: VecDeque<Entry>,
}

/// A sequence that could never run to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{needed} KV blocks needed, {total} exist")]
pub struct TooLong {
    /// Blocks for its longest state.
    pub needed: usize,
    /// Blocks there are.
    pub total: usize,
}

impl Scheduler {
    /// An empty schedule over `blocks`.
    pub fn new(limits: Limits, blocks: BlockPool) -> Self {
        Self { limits, blocks, running: Vec::new(), waiting: VecDeque::new() }
    }

    /// Queues a sequence of `known` tokens that may grow to `longest`.
    pub fn add(&mut self, id: SequenceId, known: usize, longest: usize) -> Result<(), TooLong> {
        let needed = blocks_for(longest);
        let total = self.blocks.total();
        if needed > total {
            return Err(TooLong { needed, total });
        }
        self.waiting.push_back(Entry { id, known, computed: 0, table: Vec::new() });
        Ok(())
    }

    /// Plans the next step. Call [`Self::ran`] for each slice that ran.
    pub fn plan(&mut self) -> Plan {
        let mut plan = Plan::default();
        let mut budget = self.limits.max_num_batched_tokens;
        self.plan_decode(&mut plan, &mut budget);
        self.plan_prefill(&mut plan, &mut budget);
        self.admit(&mut plan, &mut budget);
        plan
    }

    /// One token for each sequence that has all but its last token computed.
    fn plan_decode(&mut self, plan: &mut Plan, budget: &mut usize) {
        let mut i = 0;
        while i < self.running.len() && *budget > 0 {
            if self.running[i].left() == 1 && self.grow_or_preempt(i, plan) {
                self.running[i].run(1, plan, budget);
            }
            // A sequence that preempted itself was the last, and `i` is past the end.
            i += 1;
        }
    }

    /// Chunks of prompts that are under way.
    fn plan_prefill(&mut self, plan: &mut Plan, budget: &mut usize) {
        for entry in &mut self.running {
            let chunk = entry.left().min(*budget);
            if entry.left() > 1 && chunk > 0 {
                entry.run(chunk, plan, budget);
            }
        }
    }

    /// New sequences, as long as there are tokens, places and blocks for them.
    fn admit(&mut self, plan: &mut Plan, budget: &mut usize) {
        while *budget > 0 && self.running.len() < self.limits.max_num_seqs {
            let Some(mut entry) = self.waiting.pop_front() else { return };
            let Some(table) = self.blocks.take(blocks_for(entry.known)) else {
                self.waiting.push_front(entry);
                return;
            };
            entry.table = table;
            let chunk = entry.left().min(*budget);
            entry.run(chunk, plan, budget);
            self.running.push(entry);
        }
    }

    /// Makes room for all known tokens of the `i`th, if need be at the cost of the youngest. False if the
    /// `i`th was the youngest itself.
    fn grow_or_preempt(&mut self, i: usize, plan: &mut Plan) -> bool {
        loop {
            let entry = &mut self.running[i];
            let missing = blocks_for(entry.known) - entry.table.len();
            if let Some(blocks) = self.blocks.take(missing) {
                entry.table.extend(blocks);
                return true;
            }
            let youngest = self.running.len() - 1;
            self.preempt_youngest(plan);
            if youngest == i {
                return false;
            }
        }
    }

    fn preempt_youngest(&mut self, plan: &mut Plan) {
        if let Some(mut entry) = self.running.pop() {
            entry.table.clear();
            entry.computed = 0;
            plan.preempted.push(entry.id);
            self.waiting.push_front(entry);
        }
    }

    /// Records that a slice ran, and that a token was drawn after it if `grew`.
    pub fn ran(&mut self, slice: &Slice, grew: bool) {
        if let Some(entry) = self.running.iter_mut().find(|e| e.id == slice.id) {
            entry.computed += slice.length;
            entry.known += usize::from(grew);
        }
    }

    /// Forgets a sequence, wherever it stands; its blocks go home.
    pub fn remove(&mut self, id: SequenceId) {
        self.running.retain(|e| e.id != id);
        self.waiting.retain(|e| e.id != id);
    }

    /// The blocks of a running sequence, in order.
    pub fn table(&self, id: SequenceId) -> &[Block] {
        self.running.iter().find(|e| e.id == id).map_or(&[], |e| &e.table)
    }

    /// Sequences in the batch.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait for a place.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Tokens still to compute, of all sequences.
    pub fn queued_tokens(&self) -> usize {
        self.running.iter().chain(&self.waiting).map(Entry::left).sum()
    }
}

impl Entry {
    /// Tokens known but not computed. At least one: the newest is drawn, not yet run.
    fn left(&self) -> usize {
        self.known - self.computed
    }

    fn run(&self, length: usize, plan: &mut Plan, budget: &mut usize) {
        *budget -= length;
        let samples = length == self.left();
        plan.slices.push(Slice { id: self.id, start: self.computed, length, samples });
    }
}

/// Blocks that hold `tokens`.
pub fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(KV_BLOCK)
}

//! Scheduling state of a sequence: its known and computed tokens, and what of them runs in a step.

use std::{mem, ops::Range};

use stoker_ops::KV_BLOCK;

use super::{Plan, ScheduledSequence, SequenceId, Size, TokenSource};
use crate::kv_cache::{BlockTable, Lookup, Prefix, Scope, SequenceTokens};

/// Tokens that a suspect sequence draws before it shares steps again: more than the step that
/// panicked could have drawn, with 16 draft tokens at most.
pub const ISOLATED_TOKENS: usize = 20;

/// Remaining limits of a step.
pub(super) struct StepBudget {
    pub(super) tokens: usize,
    pub(super) prompt_logits: usize,
}

/// Permanent position of a sequence among those that have started: the first is the last to be
/// preempted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Order {
    /// 0 is the most urgent.
    pub(super) priority: u32,
    /// Rises with each admitted request.
    pub(super) age: u64,
    /// Index of the sequence: sequences of one request have the same age.
    pub(super) choice: u32,
}

impl Order {
    /// Age of a request that has not started.
    pub(super) const NEW: u64 = u64::MAX;
}

/// Scheduling state of a sequence.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: SequenceId,
    pub(super) order: Order,
    /// Number of prompt tokens.
    pub(super) prompt: usize,
    /// Number of known tokens: prompt and drawn.
    pub(super) known: usize,
    /// Number of leading tokens whose keys and values are in the KV cache.
    pub(super) computed: usize,
    /// Its blocks; all that are full and computed are cached.
    pub(super) table: BlockTable,
    /// Number of draft tokens to run after the newest token.
    pub(super) drafts: usize,
    /// Scope in which its cached blocks are shared.
    pub(super) scope: Scope,
    /// Whether it is the first of its request and was never admitted: cached blocks that it finds
    /// are from other requests.
    never_admitted: bool,
    /// Whether it must not read blocks that other requests have cached.
    bypass_prefix_cache: bool,
    /// Number of sequences that fork off once the prompt is computed.
    forks: u32,
    /// Length in tokens below which it runs in steps of its own.
    isolated_below: usize,
    /// Prompt positions whose logits are still to be computed, besides those that tokens are drawn
    /// from.
    pub(super) prompt_logits: Range<usize>,
}

impl Entry {
    /// Creates the sequence of a new request, which forks later.
    pub(super) fn new(request: u64, size: &Size, priority: u32) -> Self {
        // The logits of the last token are computed in any case.
        let prompt_logits = if size.prompt_logits { size.prompt.saturating_sub(1) } else { 0 };
        Self {
            id: SequenceId { request, choice: 0 },
            order: Order { priority, age: Order::NEW, choice: 0 },
            prompt: size.prompt,
            known: size.prompt,
            computed: 0,
            table: BlockTable::default(),
            drafts: 0,
            scope: size.scope.clone(),
            never_admitted: true,
            bypass_prefix_cache: size.bypass_prefix_cache,
            forks: size.num_sequences.saturating_sub(1),
            isolated_below: if size.suspect { size.prompt + ISOLATED_TOKENS } else { 0 },
            prompt_logits: 0..prompt_logits,
        }
    }

    /// Creates a resumed sequence of `known` tokens, none of them computed here. `first` marks the
    /// first one of its request.
    pub(super) fn resumed(
        request: u64,
        order: Order,
        size: &Size,
        known: usize,
        first: bool,
    ) -> Self {
        let whole = Self::new(request, size, order.priority);
        let id = SequenceId { request, choice: order.choice };
        let isolated_below = if size.suspect { known + ISOLATED_TOKENS } else { 0 };
        let whole = Self { isolated_below, ..whole };
        Self { id, order, known, never_admitted: first, forks: 0, prompt_logits: 0..0, ..whole }
    }

    /// Number of known tokens that are not computed; at least 1, since the newest is drawn but has
    /// not run.
    pub(super) fn remaining(&self) -> usize {
        self.known - self.computed
    }

    /// The same, with the tokens that its forks will compute.
    pub(super) fn remaining_with_forks(&self) -> usize {
        let per_fork = self.prompt - full_blocks(self.prompt) * KV_BLOCK;
        self.remaining() + self.forks as usize * per_fork
    }

    /// Number of batch slots that it occupies or reserves.
    pub(super) fn num_seqs(&self) -> usize {
        1 + self.forks as usize
    }

    /// Whether it is past its prompt, with all but its newest token computed.
    pub(super) fn is_decoding(&self) -> bool {
        self.known > self.prompt && self.remaining() == 1
    }

    /// Whether it runs in steps of its own.
    pub(super) fn is_isolated(&self) -> bool {
        self.known < self.isolated_below
    }

    /// Plans its newest token.
    pub(super) fn schedule_decode(&self, plan: &mut Plan, budget: &mut StepBudget) {
        budget.tokens -= 1;
        plan.scheduled.push(ScheduledSequence {
            id: self.id,
            start: self.computed,
            length: 1,
            logits: 1,
            samples: true,
            drafts: 0,
        });
    }

    /// Whether logits of its prompt are still to be computed.
    pub(super) fn wants_prompt_logits(&self) -> bool {
        !self.prompt_logits.is_empty()
    }

    /// Number of leading tokens that may be read from the cache: not the last one, from whose
    /// logits a token is drawn, and none whose prompt logits are needed.
    fn readable(&self) -> usize {
        if self.never_admitted && self.bypass_prefix_cache {
            0
        } else if self.wants_prompt_logits() {
            self.prompt_logits.start
        } else {
            self.known - 1
        }
    }

    /// All of its known tokens.
    pub(super) fn prefix<'a>(&'a self, source: &'a dyn TokenSource) -> Prefix<'a> {
        Prefix { scope: &self.scope, tokens: source.tokens(self.id) }
    }

    /// Its tokens that may be read from the cache.
    pub(super) fn readable_prefix<'a>(&'a self, source: &'a dyn TokenSource) -> Prefix<'a> {
        let Prefix { scope, tokens } = self.prefix(source);
        Prefix { scope, tokens: tokens.first(self.readable()) }
    }

    /// Minimum number of tokens to compute, whatever the cache has by then.
    pub(super) fn min_remaining(&self) -> usize {
        self.remaining().min(self.known - self.readable() / KV_BLOCK * KV_BLOCK)
    }

    /// Admits it to the batch, with blocks for all known tokens.
    pub(super) fn start(&mut self, table: BlockTable, plan: &mut Plan) {
        if self.never_admitted && self.readable() > 0 {
            let found = self.prompt.min(table.cached() * KV_BLOCK);
            plan.lookups.push(Lookup { request: self.id.request, tokens: self.prompt, found });
        }
        self.never_admitted = false;
        self.computed = table.cached() * KV_BLOCK;
        self.table = table;
    }

    /// Plans as many of its remaining tokens as the budget allows.
    pub(super) fn schedule_prefill(&self, plan: &mut Plan, budget: &mut StepBudget) {
        let pending = &self.prompt_logits;
        let within_logits = if pending.len() <= budget.prompt_logits {
            self.known
        } else {
            pending.start + budget.prompt_logits
        };
        let length = self.remaining().min(budget.tokens).min(within_logits - self.computed);
        if length == 0 {
            return;
        }
        let end = self.computed + length;
        let prompt_logits = end.min(pending.end).saturating_sub(pending.start);
        let samples = end == self.known;
        budget.tokens -= length;
        budget.prompt_logits -= prompt_logits;
        plan.scheduled.push(ScheduledSequence {
            id: self.id,
            start: self.computed,
            length,
            logits: prompt_logits + usize::from(samples),
            samples,
            drafts: 0,
        });
    }

    /// Records that `scheduled` ran and that `drawn` tokens were drawn: all but the last of them
    /// are accepted draft tokens. `tokens` are those of the sequence. Returns the forks if its
    /// prompt is computed now.
    pub(super) fn on_complete(
        &mut self,
        scheduled: &ScheduledSequence,
        drawn: usize,
        tokens: SequenceTokens<'_>,
    ) -> Vec<Self> {
        let accepted = drawn.saturating_sub(1);
        // Keys and values of rejected draft tokens are overwritten when tokens are known at their
        // positions.
        self.computed += scheduled.length - scheduled.drafts + accepted;
        self.table.cache(&self.scope, tokens.first(self.computed));
        self.known += drawn;
        self.drafts = 0;
        let pending = &mut self.prompt_logits;
        pending.start = pending.start.max(self.computed).min(pending.end);
        if self.computed < self.prompt { Vec::new() } else { self.fork() }
    }

    /// Releases all blocks.
    pub(super) fn reset(&mut self) {
        self.table.clear();
        self.computed = 0;
        self.drafts = 0;
    }

    /// Creates the forks. They get blocks of their own in the next plan.
    fn fork(&mut self) -> Vec<Self> {
        let shared = full_blocks(self.prompt);
        (1..=mem::take(&mut self.forks))
            .map(|choice| Self {
                id: SequenceId { choice, ..self.id },
                order: Order { choice, ..self.order },
                prompt: self.prompt,
                known: self.prompt,
                computed: shared * KV_BLOCK,
                table: self.table.prefix(shared),
                drafts: 0,
                scope: self.scope.clone(),
                never_admitted: false,
                bypass_prefix_cache: self.bypass_prefix_cache,
                forks: 0,
                isolated_below: self.isolated_below,
                prompt_logits: 0..0,
            })
            .collect()
    }
}

/// Number of blocks of a prompt that its forks share: the full ones of all tokens but the last,
/// from whose logits each fork draws.
pub(super) fn full_blocks(prompt: usize) -> usize {
    prompt.saturating_sub(1) / KV_BLOCK
}

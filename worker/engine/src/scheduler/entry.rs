//! A sequence as the scheduler sees it: what is known of it, what is computed, and its part in a step.

use std::{mem, ops::Range};

use stoker_ops::KV_BLOCK;

use super::{Lookup, Plan, ScheduledSequence, SequenceId, Size, isolation::ISOLATED_TOKENS};
use crate::blocks::{Scope, SequenceTokens, Table};

/// What is left of a step's limits.
pub(super) struct Budget {
    pub(super) tokens: usize,
    pub(super) prompt_logits: usize,
}

/// Where a sequence stands among those that have begun, for good: the first is the last to lose its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Order {
    /// 0 is the most urgent.
    pub(super) priority: u32,
    /// Rises with each request that begins.
    pub(super) age: u64,
    /// Sequences of one request begin together.
    pub(super) choice: u32,
}

impl Order {
    /// The age of those that have not begun.
    pub(super) const NEW: u64 = u64::MAX;
}

/// A sequence as the scheduler sees it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: SequenceId,
    pub(super) order: Order,
    /// Tokens of the prompt.
    pub(super) prompt: usize,
    /// Tokens known: prompt and generated.
    pub(super) known: usize,
    /// Tokens whose keys and values are in the cache.
    pub(super) computed: usize,
    /// Of it, all that is full and computed is kept.
    pub(super) table: Table,
    /// Tokens that somebody guesses to come next, to be run with the newest one.
    pub(super) drafts: usize,
    /// Who shares what it computes.
    pub(super) scope: Scope,
    /// It is the first of its request and has had no place yet: what it finds in the cache, others have put there.
    fresh: bool,
    /// It must not read what others have put there.
    bypasses: bool,
    /// Sequences that fork off once the prompt is computed.
    forks: u32,
    /// Tokens that it must know before it shares a step with others.
    isolated_below: usize,
    /// Positions whose logits are wanted besides those that are drawn from.
    pub(super) prompt_logits: Range<usize>,
}

impl Entry {
    /// All of a request, before anything is computed.
    pub(super) fn new(request: u64, size: &Size, priority: u32) -> Self {
        // The last one's logits are drawn from in any case.
        let wanted = if size.prompt_logits { size.prompt.saturating_sub(1) } else { 0 };
        Self {
            id: SequenceId { request, choice: 0 },
            order: Order { priority, age: Order::NEW, choice: 0 },
            prompt: size.prompt,
            known: size.prompt,
            computed: 0,
            table: Table::default(),
            drafts: 0,
            scope: size.scope.clone(),
            fresh: true,
            bypasses: size.bypass_prefix_cache,
            forks: size.num_sequences.saturating_sub(1),
            isolated_below: if size.suspect { size.prompt + ISOLATED_TOKENS } else { 0 },
            prompt_logits: 0..wanted,
        }
    }

    /// A sequence that has `known` tokens, none of them computed here; `first` of those that are resumed of its request.
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
        Self { id, order, known, fresh: first, forks: 0, prompt_logits: 0..0, ..whole }
    }

    /// Tokens known but not computed. At least one: the newest is drawn, not yet run.
    pub(super) fn left(&self) -> usize {
        self.known - self.computed
    }

    pub(super) fn left_with_forks(&self) -> usize {
        let of_a_fork = self.prompt - full_blocks(self.prompt) * KV_BLOCK;
        self.left() + self.forks as usize * of_a_fork
    }

    /// Places in the batch that it takes or keeps.
    pub(super) fn places(&self) -> usize {
        1 + self.forks as usize
    }

    /// Whether it is past its prompt, with all but its newest token computed.
    pub(super) fn decodes(&self) -> bool {
        self.known > self.prompt && self.left() == 1
    }

    /// Whether it must not share a step with others yet.
    pub(super) fn is_isolated(&self) -> bool {
        self.known < self.isolated_below
    }

    /// Plans its newest token.
    pub(super) fn decode(&self, plan: &mut Plan, budget: &mut Budget) {
        budget.tokens -= 1;
        plan.slices.push(ScheduledSequence {
            id: self.id,
            start: self.computed,
            length: 1,
            logits: 1,
            samples: true,
            drafts: 0,
        });
    }

    /// Whether logits of its prompt are still to come.
    pub(super) fn wants_prompt_logits(&self) -> bool {
        !self.prompt_logits.is_empty()
    }

    /// Tokens that may be read from the cache: not the last one, after which is drawn, and none whose logits are wanted.
    pub(super) fn readable(&self) -> usize {
        if self.fresh && self.bypasses {
            0
        } else if self.wants_prompt_logits() {
            self.prompt_logits.start
        } else {
            self.known - 1
        }
    }

    /// Tokens that it has to compute whatever the cache may have by then.
    pub(super) fn surely_left(&self) -> usize {
        self.left().min(self.known - self.readable() / KV_BLOCK * KV_BLOCK)
    }

    /// Gets its place, with blocks for all that is known.
    pub(super) fn enter(&mut self, table: Table, plan: &mut Plan) {
        if self.fresh && self.readable() > 0 {
            let found = self.prompt.min(table.kept() * KV_BLOCK);
            plan.lookups.push(Lookup { request: self.id.request, tokens: self.prompt, found });
        }
        self.fresh = false;
        self.computed = table.kept() * KV_BLOCK;
        self.table = table;
    }

    /// Plans as much of it as the budget allows, if any.
    pub(super) fn run(&self, plan: &mut Plan, budget: &mut Budget) {
        let wanted = &self.prompt_logits;
        let within_logits = if wanted.len() <= budget.prompt_logits {
            self.known
        } else {
            wanted.start + budget.prompt_logits
        };
        let length = self.left().min(budget.tokens).min(within_logits - self.computed);
        if length == 0 {
            return;
        }
        let end = self.computed + length;
        let prompt_logits = end.min(wanted.end).saturating_sub(wanted.start);
        let samples = end == self.known;
        budget.tokens -= length;
        budget.prompt_logits -= prompt_logits;
        plan.slices.push(ScheduledSequence {
            id: self.id,
            start: self.computed,
            length,
            logits: prompt_logits + usize::from(samples),
            samples,
            drafts: 0,
        });
    }

    /// Records that a slice of its `tokens` ran, and that so many were drawn: of its drafts, those before the last one drawn
    /// held. Answers the sequences that part from this one because its prompt is computed now.
    pub(super) fn ran(
        &mut self,
        slice: &ScheduledSequence,
        drawn: usize,
        tokens: SequenceTokens<'_>,
    ) -> Vec<Self> {
        let held = drawn.saturating_sub(1);
        // What the cache has of other drafts is overwritten when their places are known.
        self.computed += slice.length - slice.drafts + held;
        self.table.keep(&self.scope, tokens.first(self.computed));
        self.known += drawn;
        self.drafts = 0;
        let wanted = &mut self.prompt_logits;
        wanted.start = wanted.start.max(self.computed).min(wanted.end);
        if self.computed < self.prompt { Vec::new() } else { self.fork() }
    }

    /// Gives all blocks back.
    pub(super) fn reset(&mut self) {
        self.table.clear();
        self.computed = 0;
        self.drafts = 0;
    }

    /// The sequences that part from this one now. Blocks of their own they take at the next plan.
    fn fork(&mut self) -> Vec<Self> {
        let shared = full_blocks(self.prompt);
        (1..=mem::take(&mut self.forks))
            .map(|choice| Self {
                id: SequenceId { choice, ..self.id },
                order: Order { choice, ..self.order },
                prompt: self.prompt,
                known: self.prompt,
                computed: shared * KV_BLOCK,
                table: self.table.beginning(shared),
                drafts: 0,
                scope: self.scope.clone(),
                fresh: false,
                bypasses: self.bypasses,
                forks: 0,
                isolated_below: self.isolated_below,
                prompt_logits: 0..0,
            })
            .collect()
    }
}

/// Blocks of a prompt that its sequences share: full ones, but for its last token, after which each draws.
pub(super) fn full_blocks(prompt: usize) -> usize {
    prompt.saturating_sub(1) / KV_BLOCK
}

//! SpeculationMethod: who drafts what may come next, and how many tokens.
//!
//! A step that computes a few draft tokens beside what is certain costs little more than one that does not, and every
//! draft token that holds saves a step. Nothing here decides a token: the engine draws each from the model's own logits
//! and keeps draft tokens only as long as they are what it drew.

mod compatible;
mod control;
mod depth;
mod draft;
#[cfg(test)]
mod measured;
mod ngram;
#[cfg(test)]
mod simulated;

pub use compatible::{Incompatible, compatible};
use control::Control;
pub use depth::{Depth, MAX_DRAFT_TOKENS, NotADepth};
use draft::DraftModel;
use ngram::Ngram;

use crate::{cost::StepCost, model::Model, sampling::Sampler, scheduler::SequenceId};

/// Who drafts.
#[derive(Clone, Default)]
pub enum SpeculationMethod {
    /// Nobody.
    #[default]
    Off,
    /// The text itself: what followed the last time that it went like this.
    Ngram {
        /// How many tokens.
        tokens: Depth,
    },
    /// A smaller model of the same vocabulary, see [`compatible`].
    Draft {
        /// The model.
        model: Box<Model>,
        /// Blocks of its own cache.
        blocks: usize,
        /// How many tokens.
        tokens: Depth,
    },
}

/// A sequence that decodes in the next step.
pub(crate) struct Asking<'a> {
    /// Which.
    pub(crate) id: SequenceId,
    /// Its prompt, and everything drawn.
    pub(crate) tokens: &'a [u32],
    /// Draft tokens that it may take at most: to its longest length, and to the end of the context.
    pub(crate) room: usize,
    /// How its tokens are drawn.
    pub(crate) sampler: &'a Sampler,
}

/// What a drafter could do for a sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Offer {
    /// Tokens that it could propose at most.
    most: usize,
    /// How sure it is, below [`CLASSES`]: what holds how often is learned for each class.
    class: usize,
    /// Tokens that it has to compute before it can propose the first.
    behind: usize,
}

/// Classes of offers.
const CLASSES: usize = 4;

/// Proposes what may follow.
pub(crate) trait Drafter {
    /// What it could do for each of those that ask. No more tokens than there is room for, nor than
    /// [`MAX_DRAFT_TOKENS`].
    fn offers(&mut self, asking: &[Asking<'_>]) -> Vec<Offer>;

    /// Proposes for each of those that ask, who were just offered it, no more tokens than `most` says.
    fn draft(&mut self, asking: &[Asking<'_>], most: &[usize]) -> Vec<Vec<u32>>;

    /// How long it takes to draft one token for each of some sequences, `tokens` tokens to compute in all, in seconds. None
    /// while that is not known.
    fn seconds(&self, tokens: usize) -> Option<f64>;

    /// Drops what is kept for a sequence.
    fn forget(&mut self, id: SequenceId);
}

/// What came of all drafts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Draft tokens that were verified.
    pub(crate) drafted: u64,
    /// Those of them that held.
    pub(crate) accepted: u64,
}

/// Drafts for the sequences of an engine as much as pays.
pub(crate) struct Speculator {
    drafter: Box<dyn Drafter>,
    control: Control,
    counts: Counts,
}

impl Speculator {
    /// None if nobody is to draft. A GPU gets ready to draft for up to `sequences` at once.
    pub(crate) fn new(speculation: SpeculationMethod, sequences: usize) -> Option<Self> {
        match speculation {
            SpeculationMethod::Off => None,
            SpeculationMethod::Ngram { tokens } => Some(Self::with(Ngram::default(), tokens)),
            SpeculationMethod::Draft { model, blocks, tokens } => {
                Some(Self::with(DraftModel::new(*model, blocks, sequences), tokens))
            }
        }
    }

    fn with(drafter: impl Drafter + 'static, depth: Depth) -> Self {
        let (control, counts) = (Control::new(depth), Counts::default());
        Self { drafter: Box::new(drafter), control, counts }
    }

    /// Proposals for the next step, one for each of those that ask, in order; empty where none pays. About `others` tokens
    /// of prompts will share the step.
    pub(crate) fn propose(
        &mut self,
        asking: &[Asking<'_>],
        others: usize,
        cost: &StepCost,
    ) -> Vec<Vec<u32>> {
        if asking.is_empty() {
            return Vec::new();
        }
        let offers = self.drafter.offers(asking);
        let ids: Vec<_> = asking.iter().map(|asking| asking.id).collect();
        let most = self.control.choose(&ids, &offers, others, cost, |n| self.drafter.seconds(n));
        if most.iter().all(|most| *most == 0) {
            return vec![Vec::new(); asking.len()];
        }
        self.drafter.draft(asking, &most)
    }

    /// Of `drafted` tokens that were verified for a sequence, the first `accepted` held.
    pub(crate) fn verified(&mut self, id: SequenceId, drafted: usize, accepted: usize) {
        if drafted > 0 {
            self.counts.drafted += drafted as u64;
            self.counts.accepted += accepted as u64;
            self.control.verified(id, drafted, accepted);
        }
    }

    /// The sequence is over, or was preempted: whatever is kept for it may go. It may come back under the same id.
    pub(crate) fn forget(&mut self, id: SequenceId) {
        self.drafter.forget(id);
        self.control.forget(id);
    }

    /// What came of all drafts so far.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }
}

/// How many tokens two texts begin with in common.
fn common(one: &[u32], other: &[u32]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

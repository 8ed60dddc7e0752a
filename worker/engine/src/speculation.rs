//! Speculative decoding: which tokens are drafted, and how many.
//!
//! A step that computes a few draft tokens next to the known ones costs little more than one
//! without them, and every accepted draft token saves a step. Nothing here decides a token: the
//! engine draws each from the model's own logits and accepts draft tokens only as long as they
//! equal the drawn ones.

mod compatible;
mod depth;
mod depth_control;
mod draft;
mod ngram;

pub use compatible::{Incompatible, compatible};
pub use depth::{Depth, MAX_DRAFT_TOKENS, ParseDepthError};
use depth_control::DepthControl;
use draft::DraftModel;
use ngram::Ngram;

use crate::{cost::StepCost, model::Model, sampling::Sampler, scheduler::SequenceId};

/// The source of draft tokens.
#[derive(Clone, Default)]
pub enum SpeculationMethod {
    /// No speculative decoding.
    #[default]
    Off,
    /// Prompt lookup: the tokens after an earlier occurrence of the last n-gram.
    Ngram {
        /// Number of draft tokens.
        tokens: Depth,
    },
    /// A smaller model of the same vocabulary, see [`compatible`].
    Draft {
        /// The draft model.
        model: Box<Model>,
        /// Number of blocks in its own KV cache.
        blocks: usize,
        /// Number of draft tokens.
        tokens: Depth,
    },
}

/// A sequence that decodes in the next step and may get draft tokens.
pub(crate) struct DraftRequest<'a> {
    /// The sequence.
    pub(crate) id: SequenceId,
    /// Its prompt and its drawn tokens.
    pub(crate) tokens: &'a [u32],
    /// Maximum number of draft tokens, by its maximum length and the end of the context.
    pub(crate) max_drafts: usize,
    /// Draws its tokens.
    pub(crate) sampler: &'a Sampler,
}

/// What a drafter can propose for a sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DraftCapacity {
    /// Maximum number of draft tokens.
    max_tokens: usize,
    /// Confidence class, below [`CLASSES`]. Acceptance rates are tracked for each class.
    class: usize,
    /// Number of tokens that the drafter computes before the first draft token.
    backlog: usize,
}

/// Number of confidence classes.
const CLASSES: usize = 4;

/// A source of draft tokens.
pub(crate) trait Drafter {
    /// Returns the capacity for each request: at most its `max_drafts` and [`MAX_DRAFT_TOKENS`].
    fn capacities(&mut self, requests: &[DraftRequest<'_>]) -> Vec<DraftCapacity>;

    /// Drafts tokens for each of the requests of the last call of [`Self::capacities`], at most as
    /// many as `max_tokens` has for it.
    fn draft(&mut self, requests: &[DraftRequest<'_>], max_tokens: &[usize]) -> Vec<Vec<u32>>;

    /// Estimated duration in seconds of a drafting round that computes `tokens` tokens, and drafts
    /// one token for each of some sequences. `None` while unknown.
    fn round_seconds(&self, tokens: usize) -> Option<f64>;

    /// Releases the state of a sequence.
    fn release(&mut self, id: SequenceId);
}

/// Counters of draft tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DraftCounts {
    /// Draft tokens that were verified.
    pub(crate) drafted: u64,
    /// Draft tokens that were accepted.
    pub(crate) accepted: u64,
}

/// Drafts tokens for the sequences of an engine, as many as pay.
pub(crate) struct Speculator {
    drafter: Box<dyn Drafter>,
    control: DepthControl,
    counts: DraftCounts,
}

impl Speculator {
    /// Returns `None` without speculative decoding. A GPU is prepared to draft for up to
    /// `sequences` sequences at once.
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
        let (control, counts) = (DepthControl::new(depth), DraftCounts::default());
        Self { drafter: Box::new(drafter), control, counts }
    }

    /// Drafts tokens for the next step. Returns a proposal for each request, in order, empty where
    /// none pays. The step will have about `prefill` prompt tokens.
    pub(crate) fn propose(
        &mut self,
        requests: &[DraftRequest<'_>],
        prefill: usize,
        cost: &StepCost,
    ) -> Vec<Vec<u32>> {
        if requests.is_empty() {
            return Vec::new();
        }
        let capacities = self.drafter.capacities(requests);
        let ids: Vec<_> = requests.iter().map(|request| request.id).collect();
        let round_seconds = |tokens| self.drafter.round_seconds(tokens);
        let depths = self.control.choose(&ids, &capacities, prefill, cost, round_seconds);
        if depths.iter().all(|depth| *depth == 0) {
            return vec![Vec::new(); requests.len()];
        }
        self.drafter.draft(requests, &depths)
    }

    /// Records that `drafted` tokens of a sequence were verified and the first `accepted` of them
    /// accepted.
    pub(crate) fn on_verified(&mut self, id: SequenceId, drafted: usize, accepted: usize) {
        if drafted > 0 {
            self.counts.drafted += drafted as u64;
            self.counts.accepted += accepted as u64;
            self.control.on_verified(id, drafted, accepted);
        }
    }

    /// Releases the state of a sequence that has ended or was preempted. It may return under the
    /// same id.
    pub(crate) fn release(&mut self, id: SequenceId) {
        self.drafter.release(id);
        self.control.release(id);
    }

    /// Totals since the start.
    pub(crate) fn counts(&self) -> DraftCounts {
        self.counts
    }
}

/// Number of leading tokens that two texts have in common.
fn common_prefix(one: &[u32], other: &[u32]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests;

//! The settings of speculative decoding.

use clap::{Args, ValueEnum};
use stoker_engine::{
    Model,
    speculation::{Depth, SpeculationMethod},
};

use crate::source::ModelSource;

/// Source of draft tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Drafter {
    /// No speculative decoding
    #[default]
    Off,
    /// Draft what followed the last occurrence of the latest tokens in the sequence (prompt lookup)
    Ngram,
    /// Draft with a smaller model
    Draft,
}

/// Speculative decoding: the source of draft tokens and their number. It does not change responses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct SpeculationConfig {
    /// Speculative decoding: draft tokens, so that one step can accept several; responses stay the
    /// same, token for token
    #[arg(
        long,
        env = "STOKER_SPECULATE",
        value_enum,
        default_value_t = Drafter::default(),
        value_name = "DRAFTER",
        help_heading = "Speculation"
    )]
    pub speculate: Drafter,

    /// The draft model for `--speculate draft`, with the same vocabulary and at least the same
    /// context; the bundled model has its own. Its keys and values share --kv-cache-memory
    #[arg(long, env = "STOKER_DRAFT_MODEL", value_name = "PATH", help_heading = "Speculation")]
    pub draft_model: Option<ModelSource>,

    /// Draft tokens per sequence and step: a number from 1 to 16, or `adaptive`, the number that is
    /// estimated to be fastest, which may be 0
    #[arg(
        long,
        env = "STOKER_NUM_SPECULATIVE_TOKENS",
        default_value_t = Depth::default(),
        value_name = "COUNT",
        help_heading = "Speculation"
    )]
    pub num_speculative_tokens: Depth,
}

/// Flags of speculative decoding that contradict each other or the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpeculationError {
    /// Speculation needs a draft model, and none is given.
    #[error(
        "--speculate draft needs --draft-model PATH, a smaller model with the same vocabulary; or \
         use --speculate ngram, which needs none"
    )]
    NoDraft,
    /// A simulated device cannot run a draft model.
    #[error(
        "--speculate draft cannot draft the synthetic text of --simulate; use --speculate ngram"
    )]
    SimulatedDraft,
    /// A draft model is given that is not used.
    #[error("--draft-model has no effect without --speculate draft; add that, or omit it")]
    UnusedDraft,
}

impl SpeculationConfig {
    /// Returns the draft model for `model`, if speculation uses one.
    pub fn draft(&self, model: &ModelSource) -> Result<Option<ModelSource>, SpeculationError> {
        match (self.speculate, &self.draft_model, model) {
            (Drafter::Draft, _, ModelSource::Simulated(_)) => Err(SpeculationError::SimulatedDraft),
            (Drafter::Draft, Some(draft), _) => Ok(Some(draft.clone())),
            (Drafter::Draft, None, ModelSource::Bundled) => Ok(Some(ModelSource::BundledDraft)),
            (Drafter::Draft, None, _) => Err(SpeculationError::NoDraft),
            (_, Some(_), _) => Err(SpeculationError::UnusedDraft),
            (_, None, _) => Ok(None),
        }
    }

    /// Returns the speculation method of an engine with `blocks` KV blocks for `model`.
    pub fn method(&self, model: &Model, blocks: usize) -> SpeculationMethod {
        let tokens = self.num_speculative_tokens;
        match (self.speculate, &model.draft) {
            (Drafter::Ngram, _) => SpeculationMethod::Ngram { tokens },
            (Drafter::Draft, Some(draft)) => {
                SpeculationMethod::Draft { model: draft.clone(), blocks, tokens }
            }
            _ => SpeculationMethod::Off,
        }
    }
}

//! The settings of speculative decoding.

use clap::{Args, ValueEnum};
use stoker_engine::{
    Model,
    speculation::{Depth, SpeculationMethod},
};

use super::ConfigError;
use crate::loading::ModelSource;

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

impl SpeculationConfig {
    /// Returns the draft model for `model`, if speculation uses one.
    pub(crate) fn draft(&self, model: &ModelSource) -> Result<Option<ModelSource>, ConfigError> {
        match (self.speculate, &self.draft_model, model) {
            (Drafter::Draft, _, ModelSource::Simulated(_)) => Err(ConfigError::SimulatedDraft),
            (Drafter::Draft, Some(draft), _) => Ok(Some(draft.clone())),
            (Drafter::Draft, None, ModelSource::Bundled) => Ok(Some(ModelSource::BundledDraft)),
            (Drafter::Draft, None, _) => Err(ConfigError::NoDraft),
            (_, Some(_), _) => Err(ConfigError::UnusedDraft),
            (_, None, _) => Ok(None),
        }
    }

    /// Returns the speculation method of an engine with `blocks` KV blocks for `model`.
    pub(crate) fn method(&self, model: &Model, blocks: usize) -> SpeculationMethod {
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

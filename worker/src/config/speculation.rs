//! Who guesses tokens ahead, as an operator sets it.

use clap::{Args, ValueEnum};
use stoker_engine::{
    Model,
    speculation::{Depth, SpeculationMethod},
};

use super::ConfigError;
use crate::loading::ModelSource;

/// Who guesses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Drafter {
    /// Nobody
    #[default]
    Off,
    /// The text itself: what followed the last time that it went like this
    Ngram,
    /// A smaller model
    Draft,
}

/// Who guesses tokens ahead, and how many. No answer changes by it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct SpeculationConfig {
    /// Guess tokens ahead, so that one step makes several; answers stay the same, token for token
    #[arg(
        long,
        env = "STOKER_SPECULATE",
        value_enum,
        default_value_t = Drafter::default(),
        value_name = "DRAFTER",
        help_heading = "Speculation"
    )]
    pub speculate: Drafter,

    /// The smaller model for `--speculate draft`, with the same vocabulary and a context as long; the bundled model brings
    /// its own. Its keys and values take their part of --kv-cache-memory
    #[arg(long, env = "STOKER_DRAFT_MODEL", value_name = "PATH", help_heading = "Speculation")]
    pub draft_model: Option<ModelSource>,

    /// Tokens to guess in each step: a number from 1 to 16, or `adaptive`, as many as pay, which may be none
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
    /// The model that guesses for `model`, if one does.
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

    /// How an engine guesses that has a cache of `blocks` for `model`.
    pub(crate) fn of(&self, model: &Model, blocks: usize) -> SpeculationMethod {
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

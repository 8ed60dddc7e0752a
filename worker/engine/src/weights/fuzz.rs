//! Entry points for `scripts/fuzz`: parts of a model that are otherwise read with the whole.

use super::config::{add_generation_config, from_json};
use super::{ModelConfig, Source, WeightsError};

/// Reads config.json, and generation_config.json if there is one.
pub fn config(
    config: Vec<u8>,
    generation_config: Option<Vec<u8>>,
) -> Result<ModelConfig, WeightsError> {
    let config = from_json(&Source::new("config.json", config))?;
    match generation_config {
        None => Ok(config),
        Some(json) => add_generation_config(config, &Source::new("generation_config.json", json)),
    }
}

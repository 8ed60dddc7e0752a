//! Root-mean-square normalisation of an operation's input.

use stoker_ops::ops::Norm;

use super::Reader;
use crate::weights::{ModelConfig, WeightsError};

/// Reads `name.weight`: one gain for each element of a row.
pub(super) fn read(
    config: &ModelConfig,
    reader: &mut Reader,
    name: &str,
) -> Result<Norm, WeightsError> {
    let gain = reader.vector(&[format!("{name}.weight")])?;
    Ok(Norm { gain, epsilon: config.rms_norm_eps as f32 })
}

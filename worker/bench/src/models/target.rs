//! A model to measure.

use stoker_engine::weights::ModelConfig;

use super::Format;

/// A model file in one format.
#[derive(Debug, Clone)]
pub struct Target {
    /// Name in rows.
    pub name: String,
    /// Value of `--model`.
    pub source: String,
    /// Its format.
    pub format: Format,
    /// Its shape.
    pub config: ModelConfig,
    /// Whether it is the bundled model, or that with padding.
    pub is_bundled: bool,
}

//! Where a model comes from.

use std::{path::PathBuf, str::FromStr};

use stoker_engine::profile::Profile;

/// Name of the bundled model, on the command line and in requests.
pub const BUNDLED: &str = "storyteller";
/// Name of the bundled draft model.
pub(crate) const BUNDLED_DRAFT: &str = "storyteller-draft";
/// Name of a simulated model in requests.
const SIMULATED: &str = "simulated";

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// The bundled story model.
    Bundled,
    /// The bundled draft model of the story model.
    BundledDraft,
    /// A folder of SafeTensors, config.json and tokenizer.json, or a GGUF file.
    Path(PathBuf),
    /// No model: a device that a profile simulates.
    Simulated(Profile),
}

impl FromStr for ModelSource {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            BUNDLED => Self::Bundled,
            BUNDLED_DRAFT => Self::BundledDraft,
            path => Self::Path(path.into()),
        })
    }
}

impl ModelSource {
    /// Returns the default name of the model in requests: the last part of its path, without
    /// `.gguf`.
    pub fn name(&self) -> String {
        match self {
            Self::Bundled => BUNDLED.into(),
            Self::BundledDraft => BUNDLED_DRAFT.into(),
            Self::Simulated(_) => SIMULATED.into(),
            Self::Path(path) => {
                let path = path.canonicalize().unwrap_or_else(|_| path.clone());
                let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
                let name = name.unwrap_or_else(|| path.display().to_string());
                name.strip_suffix(".gguf").map(str::to_owned).unwrap_or(name)
            }
        }
    }
}

//! Finds and loads a model, with progress for those who watch.

use std::{path::PathBuf, str::FromStr};

use indicatif::{ProgressBar, ProgressStyle};
use stoker_engine::{
    Model,
    model::{self, Quantization},
    simulate::Profile,
    weights::{ModelFiles, WeightsError},
};

use crate::simulate;

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// The story model that is part of this program.
    Bundled,
    /// A folder of SafeTensors, config.json and tokenizer.json, or a GGUF file.
    Path(PathBuf),
    /// No model: a device that is simulated by a profile.
    Simulated(Profile),
}

/// The name of the bundled model, on the command line and in requests.
pub const BUNDLED: &str = "storyteller";

/// A model that could not be loaded.
#[derive(Debug, thiserror::Error)]
#[error("--model: {0}")]
pub struct LoadError(Box<WeightsError>);

impl FromStr for ModelSource {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == BUNDLED { Self::Bundled } else { Self::Path(text.into()) })
    }
}

impl ModelSource {
    /// What requests call the model: the last part of its path, without `.gguf`.
    pub fn name(&self) -> String {
        match self {
            Self::Bundled => BUNDLED.into(),
            Self::Simulated(_) => simulate::NAME.into(),
            Self::Path(path) => {
                let path = path.canonicalize().unwrap_or_else(|_| path.clone());
                let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
                let name = name.unwrap_or_else(|| path.display().to_string());
                name.strip_suffix(".gguf").map(str::to_owned).unwrap_or(name)
            }
        }
    }
}

/// Loads a model onto the CPU. Shows a bar on a terminal and nothing in a pipe.
pub fn load(source: &ModelSource, quantization: Quantization) -> Result<Model, LoadError> {
    let files = match source {
        ModelSource::Bundled => ModelFiles::embedded(BUNDLED, storyteller::model()),
        ModelSource::Path(path) => ModelFiles::open(path),
        ModelSource::Simulated(profile) => {
            return simulate::model(*profile).map_err(|error| LoadError(Box::new(error)));
        }
    };
    let bar = ProgressBar::no_length().with_style(style()).with_prefix(source.name());
    let model = files.and_then(|files| {
        Model::load(&files, &model::cpu(), quantization, |progress| {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
        })
    });
    bar.finish_and_clear();
    model.map_err(|error| LoadError(Box::new(error)))
}

fn style() -> ProgressStyle {
    let template = "Loading {prefix} {wide_bar} {binary_bytes}/{binary_total_bytes}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

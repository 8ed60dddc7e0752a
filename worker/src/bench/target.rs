//! The models to measure. They are opened or generated before the first job runs.

use std::path::PathBuf;

use stoker_engine::weights::{ModelConfig, ModelFiles};

use super::{
    Format,
    cli::BenchArgs,
    error::Error,
    padded_model,
    random::{self, Shape, cache},
};
use crate::{ModelSource, config::Drafter, loading};

/// A model file in one format.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// Name in rows.
    pub(super) name: String,
    /// Value of `--model`.
    pub(super) source: String,
    pub(super) format: Format,
    pub(super) config: ModelConfig,
}

/// Returns the model of `--model`, or random weights in every requested format.
pub(super) fn targets(args: &BenchArgs) -> Result<Vec<Target>, Error> {
    if let Some(source) = &args.model {
        return Ok(vec![existing(source)?]);
    }
    let shape = args.random_weights.unwrap_or(Shape::TinyLlama);
    let folder = cache_folder(args)?;
    if args.speculation.speculate != Drafter::Off {
        return Ok(vec![padded(shape, &folder)?]);
    }
    let only_scenarios = args.batch.or(args.context).is_none()
        && args.sweep.is_none()
        && args.soak.is_none()
        && args.shared_prefix.is_none()
        && args.long_prompt.is_none()
        && !args.ablation;
    let mut formats = match args.format.as_slice() {
        [] if only_scenarios => Format::ALL.to_vec(),
        [] => vec![Format::Gguf],
        formats => formats.to_vec(),
    };
    formats.dedup();
    formats.into_iter().map(|format| random(shape, format, &folder)).collect()
}

/// Returns the model for the row of `--ablation` with speculative decoding. That is the bundled
/// model, padded to the size of the models in the other rows, since random weights do not generate
/// predictable text. Returns none for any other `--model`, which has no known draft model.
pub(super) fn speculation_target(args: &BenchArgs) -> Result<Option<Target>, Error> {
    match &args.model {
        _ if !args.ablation => Ok(None),
        None => {
            let shape = args.random_weights.unwrap_or(Shape::TinyLlama);
            padded(shape, &cache_folder(args)?).map(Some)
        }
        Some(source @ ModelSource::Bundled) => existing(source).map(Some),
        Some(_) => Ok(None),
    }
}

/// Returns the folder for generated models.
fn cache_folder(args: &BenchArgs) -> Result<PathBuf, Error> {
    match &args.cache {
        Some(folder) => Ok(folder.clone()),
        None => Ok(cache::default_folder()?),
    }
}

fn random(shape: Shape, format: Format, folder: &std::path::Path) -> Result<Target, Error> {
    let path = random::prepare(shape, format, folder)?;
    let source = text(path.clone(), "--cache")?;
    let files = ModelFiles::open(&path).map_err(|error| {
        let remedy = "delete the file, and it is generated again";
        Error::Usage(format!("--cache {}: {error}; {remedy}", folder.display()))
    })?;
    Ok(Target { name: shape.name().into(), source, format, config: files.config().clone() })
}

/// Returns the bundled model, padded to the size of `shape`.
fn padded(shape: Shape, folder: &std::path::Path) -> Result<Target, Error> {
    let path = padded_model::prepare(shape, folder)?;
    let config = ModelFiles::open(&path)?.config().clone();
    let name = format!("{} like {}", loading::BUNDLED, shape.name());
    let source = text(path, "--cache")?;
    Ok(Target { name, source, format: Format::Safetensors, config })
}

/// Returns the model of `--model`.
fn existing(source: &ModelSource) -> Result<Target, Error> {
    let (text, format) = match source {
        ModelSource::Path(path) => {
            let format = if path.is_dir() { Format::Safetensors } else { Format::Gguf };
            (text(path.clone(), "--model")?, format)
        }
        bundled => (bundled.name(), Format::Safetensors),
    };
    let config = loading::open(source)?.config().clone();
    Ok(Target { name: source.name(), source: text, format, config })
}

/// Converts a path to text, as which jobs carry it to child processes.
fn text(path: PathBuf, flag: &str) -> Result<String, Error> {
    path.into_os_string().into_string().map_err(|path| {
        Error::Usage(format!("{flag} {}: the path is not UTF-8; rename it", path.display()))
    })
}

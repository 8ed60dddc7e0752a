//! The models that are measured, found or made before the first row.

use std::path::PathBuf;

use stoker_engine::weights::{ModelConfig, ModelFiles};

use super::{
    Format,
    cli::BenchArgs,
    error::Error,
    padded,
    random::{self, Shape, cache},
};
use crate::{ModelSource, config::Drafter, loading};

/// A model in one format.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    /// What rows call it.
    pub(super) name: String,
    /// As `--model` takes it.
    pub(super) source: String,
    pub(super) format: Format,
    pub(super) config: ModelConfig,
}

/// The model of `--model`, or random weights in every format asked for.
pub(super) fn subjects(args: &BenchArgs) -> Result<Vec<Subject>, Error> {
    if let Some(source) = &args.model {
        return Ok(vec![given(source)?]);
    }
    let shape = args.random_weights.unwrap_or(Shape::TinyLlama);
    let folder = folder(args)?;
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
        given => given.to_vec(),
    };
    formats.dedup();
    formats.into_iter().map(|format| random(shape, format, &folder)).collect()
}

/// The model of the last row of `--ablation`, the one with guesses: the bundled one, made as large as what is measured before
/// it, since random weights tell no stories. None with another model, of which nobody knows who could guess for it.
pub(super) fn guessed(args: &BenchArgs) -> Result<Option<Subject>, Error> {
    match &args.model {
        _ if !args.ablation => Ok(None),
        None => {
            let shape = args.random_weights.unwrap_or(Shape::TinyLlama);
            padded(shape, &folder(args)?).map(Some)
        }
        Some(source @ ModelSource::Bundled) => given(source).map(Some),
        Some(_) => Ok(None),
    }
}

/// Where models are kept that are made here.
fn folder(args: &BenchArgs) -> Result<PathBuf, Error> {
    match &args.cache {
        Some(folder) => Ok(folder.clone()),
        None => Ok(cache::default_folder()?),
    }
}

fn random(shape: Shape, format: Format, folder: &std::path::Path) -> Result<Subject, Error> {
    let path = random::prepare(shape, format, folder)?;
    let source = text(path.clone(), "--cache")?;
    let files = ModelFiles::open(&path).map_err(|error| {
        let remedy = "delete it, and it is made again";
        Error::Usage(format!("--cache {}: {error}; {remedy}", folder.display()))
    })?;
    Ok(Subject { name: shape.name().into(), source, format, config: files.config().clone() })
}

/// The bundled model, made as large as `shape`.
fn padded(shape: Shape, folder: &std::path::Path) -> Result<Subject, Error> {
    let path = padded::prepare(shape, folder)?;
    let config = ModelFiles::open(&path)?.config().clone();
    let name = format!("{} like {}", loading::BUNDLED, shape.name());
    let source = text(path, "--cache")?;
    Ok(Subject { name, source, format: Format::Safetensors, config })
}

fn given(source: &ModelSource) -> Result<Subject, Error> {
    let (text, format) = match source {
        ModelSource::Path(path) => {
            let format = if path.is_dir() { Format::Safetensors } else { Format::Gguf };
            (text(path.clone(), "--model")?, format)
        }
        bundled => (bundled.name(), Format::Safetensors),
    };
    let config = loading::open(source)?.config().clone();
    Ok(Subject { name: source.name(), source: text, format, config })
}

/// Paths travel to other processes as text.
fn text(path: PathBuf, flag: &str) -> Result<String, Error> {
    path.into_os_string().into_string().map_err(|path| {
        Error::Usage(format!("{flag} {}: the path is not UTF-8; rename it", path.display()))
    })
}

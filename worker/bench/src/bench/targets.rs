//! The models to measure. They are opened or generated before the first job runs.

use std::path::{Path, PathBuf};

use stoker_engine::weights::ModelFiles;
use stoker_loader::{BUNDLED, ModelSource};

use super::BenchArgs;
use crate::{
    Error,
    models::{
        Format, Shape, Target, padded,
        random::{self, cache},
    },
};

/// Returns the model of `--model`, or else one of the size of `--random-weights`: the bundled one
/// with padding if the text must be predictable, or random weights in each of `formats`.
pub(super) fn targets(
    args: &BenchArgs,
    needs_text: bool,
    formats: &[Format],
) -> Result<Vec<Target>, Error> {
    if let Some(source) = &args.model {
        return Ok(vec![existing(source)?]);
    }
    let shape = args.random_weights.unwrap_or(Shape::TinyLlama);
    let folder = args.cache.clone().map_or_else(cache::default_folder, Ok)?;
    if needs_text {
        return Ok(vec![padded(shape, &folder)?]);
    }
    formats.iter().map(|format| random(shape, *format, &folder)).collect()
}

fn random(shape: Shape, format: Format, folder: &Path) -> Result<Target, Error> {
    let path = random::prepare(shape, format, folder)?;
    let source = text(path.clone(), "--cache")?;
    let files = ModelFiles::open(&path).map_err(|error| {
        let remedy = "delete the file, and it is generated again";
        Error::Usage(format!("--cache {}: {error}; {remedy}", folder.display()))
    })?;
    let (name, config) = (shape.name().into(), files.config().clone());
    Ok(Target { name, source, format, config, is_bundled: false })
}

/// Returns the bundled model, padded to the size of `shape`.
fn padded(shape: Shape, folder: &Path) -> Result<Target, Error> {
    let path = padded::prepare(shape, folder)?;
    let config = ModelFiles::open(&path)?.config().clone();
    let name = format!("{} like {}", BUNDLED, shape.name());
    let source = text(path, "--cache")?;
    Ok(Target { name, source, format: Format::Safetensors, config, is_bundled: true })
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
    let config = stoker_loader::open(source)?.config().clone();
    let is_bundled = *source == ModelSource::Bundled;
    Ok(Target { name: source.name(), source: text, format, config, is_bundled })
}

/// Converts a path to text, as which jobs carry it to child processes.
fn text(path: PathBuf, flag: &str) -> Result<String, Error> {
    path.into_os_string().into_string().map_err(|path| {
        Error::Usage(format!("{flag} {}: the path is not UTF-8; rename it", path.display()))
    })
}

//! Pads the bundled model to the size of a larger one without changing its output.
//!
//! Speculative decoding is then measured with the step cost of a real model and with predictable
//! text. A layer whose output projections are zero adds nothing to the residual stream, and zero
//! rows of a feed-forward network add nothing either. Reading and multiplying them takes as long as
//! any other weights.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use half::bf16;
use serde_json::Value;
use stoker_engine::{
    Footprint,
    model::Quantization,
    weights::{ModelConfig, ModelFiles, tensor_shapes},
};
use stoker_loader::{BUNDLED, ModelSource};

use super::random::{Shape, safetensors};
use crate::Error;

/// Version of the generated files. Incremented whenever their contents change.
const VERSION: u32 = 1;
/// Granularity of the feed-forward width.
const WIDTH_MULTIPLE: usize = 256;

/// Returns the folder with the bundled model, padded until a step reads as many bytes as a step of
/// `shape`. Generates it in the folder `cache` if it does not exist.
pub(crate) fn prepare(shape: Shape, cache: &Path) -> Result<PathBuf, Error> {
    let stem = format!("{}-like-{}-v{VERSION}", BUNDLED, shape.name());
    let folder = cache.join(&stem);
    if folder.exists() {
        return Ok(folder);
    }
    let files = stoker_loader::open(&ModelSource::Bundled)?;
    let config = padded_config(files.config(), &shape.config());
    let partial = cache.join(format!("{stem}.{}.partial", std::process::id()));
    let written = fs::create_dir_all(&partial)
        .and_then(|()| write(&partial, &files, &config))
        .and_then(|()| fs::rename(&partial, &folder));
    match written {
        // Another process may have created the folder first.
        Err(error) if !folder.exists() => {
            Err(Error::Usage(format!("--cache {}: {error}", cache.display())))
        }
        _ => Ok(folder),
    }
}

/// Returns `model` with twice the layers of `like` and a feed-forward width at which a step reads
/// as many bytes as a step of `like`.
fn padded_config(model: &ModelConfig, like: &ModelConfig) -> ModelConfig {
    let bytes = |config: &ModelConfig| Footprint::of(config, Quantization::Int8).step_weight_bytes;
    let num_layers = (2 * like.num_layers).max(model.num_layers);
    let with = |intermediate_size| ModelConfig { num_layers, intermediate_size, ..model.clone() };
    let narrow = with(model.intermediate_size.next_multiple_of(WIDTH_MULTIPLE));
    let increment = bytes(&with(narrow.intermediate_size + WIDTH_MULTIPLE)) - bytes(&narrow);
    let missing = bytes(like).saturating_sub(bytes(&narrow)) / increment.max(1);
    with(narrow.intermediate_size + missing as usize * WIDTH_MULTIPLE)
}

fn write(folder: &Path, files: &ModelFiles, config: &ModelConfig) -> io::Result<()> {
    let bundled = |name| {
        storyteller::file(storyteller::model(), name)
            .ok_or(io::Error::from(io::ErrorKind::NotFound))
    };
    let mut json: Value = serde_json::from_slice(bundled("config.json")?)?;
    json["num_hidden_layers"] = config.num_layers.into();
    json["intermediate_size"] = config.intermediate_size.into();
    fs::write(folder.join("config.json"), json.to_string())?;
    fs::write(folder.join("tokenizer.json"), bundled("tokenizer.json")?)?;

    let header = safetensors::header(tensor_shapes(config));
    let mut out = BufWriter::new(File::create(folder.join("model.safetensors"))?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    let mut begin = out.stream_position()?;
    let originals: HashMap<_, _> =
        files.tensors().map(|info| (info.name.as_str(), info.shape.as_slice())).collect();
    for (name, shape) in tensor_shapes(config) {
        let (rows, columns) = dimensions(&shape);
        if let Some(original) = originals.get(name.as_str()) {
            let values = files.read_f32(&name).map_err(io::Error::other)?;
            for (row, values) in values.chunks_exact(dimensions(original).1).enumerate() {
                write_at(&mut out, begin + bytes(row * columns), values)?;
            }
        } else if shape.len() == 1 {
            // The weights of a norm. All other new values are holes in the file, which read as
            // zeros.
            write_at(&mut out, begin, &vec![1.0; columns])?;
        }
        begin += bytes(rows * columns);
    }
    let file = out.into_inner()?;
    file.set_len(begin)?;
    file.sync_all()
}

/// Writes `values` as bf16 at byte `at`.
fn write_at(out: &mut (impl Write + Seek), at: u64, values: &[f32]) -> io::Result<()> {
    let bytes: Vec<u8> =
        values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
    out.seek(SeekFrom::Start(at))?;
    out.write_all(&bytes)
}

/// Returns the size of `count` bf16 values in bytes.
fn bytes(count: usize) -> u64 {
    (count * size_of::<bf16>()) as u64
}

/// Returns rows and columns. Anything but a matrix is a single row.
fn dimensions(shape: &[usize]) -> (usize, usize) {
    match shape {
        [rows, columns] => (*rows, *columns),
        other => (1, other.iter().product()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_padded_model_is_larger_and_has_the_same_output() {
        let cache = tempfile::tempdir().unwrap();
        let folder = prepare(Shape::Tiny, cache.path()).unwrap();
        let (small, large) = (
            stoker_loader::open(&ModelSource::Bundled).unwrap(),
            ModelFiles::open(&folder).unwrap(),
        );
        assert!(large.config().num_layers >= small.config().num_layers);
        for info in small.tensors() {
            let (original, padded) = (small.read_f32(&info.name), large.read_f32(&info.name));
            let (original, padded) = (original.unwrap(), padded.unwrap());
            let columns = dimensions(&info.shape).1;
            let wide = large.tensors().find(|other| other.name == info.name).unwrap();
            let rows = padded.chunks_exact(dimensions(&wide.shape).1);
            let mut rows = rows.map(|row| row.split_at(columns));
            for original in original.chunks_exact(columns) {
                let (values, padding) = rows.next().unwrap();
                assert_eq!(values, original, "{}", info.name);
                assert!(padding.iter().all(|value| *value == 0.0), "{}", info.name);
            }
            assert!(rows.all(|(a, b)| a.iter().chain(b).all(|value| *value == 0.0)));
        }
        let like = padded_config(small.config(), &Shape::TinyLlama.config());
        let bytes = |config| Footprint::of(config, Quantization::Int8).step_weight_bytes as f64;
        let ratio = bytes(&like) / bytes(&Shape::TinyLlama.config());
        assert!((0.99..1.01).contains(&ratio), "{ratio}");
    }
}

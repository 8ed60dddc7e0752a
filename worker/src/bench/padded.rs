//! The bundled model, made larger without another result: what guessing ahead gains is then measured where a step costs
//! what it costs in a real model, and texts still make sense.
//!
//! Layers whose output projections are zero add nothing to what passes them, and so do rows of a feed-forward network that
//! are zero. Reading and multiplying them takes as long as any others.

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

use super::{
    error::Error,
    random::{Shape, safetensors},
};
use crate::{ModelSource, loading};

/// Goes up whenever the files would be others than before.
const VERSION: u32 = 1;
/// Widths of feed-forward networks are multiples of it.
const WIDTH: usize = 256;

/// The folder with the bundled model, padded until a step reads as much as one of `shape`; made in the folder `cache` if it
/// is not there yet.
pub(super) fn prepare(shape: Shape, cache: &Path) -> Result<PathBuf, Error> {
    let stem = format!("{}-like-{}-v{VERSION}", loading::BUNDLED, shape.name());
    let folder = cache.join(&stem);
    if folder.exists() {
        return Ok(folder);
    }
    let files = loading::open(&ModelSource::Bundled)?;
    let config = padded(files.config(), &shape.config());
    let partial = cache.join(format!("{stem}.{}.partial", std::process::id()));
    let made = fs::create_dir_all(&partial)
        .and_then(|()| write(&partial, &files, &config))
        .and_then(|()| fs::rename(&partial, &folder));
    match made {
        // Another process may have been faster.
        Err(error) if !folder.exists() => {
            Err(Error::Usage(format!("--cache {}: {error}", cache.display())))
        }
        _ => Ok(folder),
    }
}

/// `model` with twice the layers of `like`, so wide that a step reads as many bytes.
fn padded(model: &ModelConfig, like: &ModelConfig) -> ModelConfig {
    let bytes = |config: &ModelConfig| Footprint::of(config, Quantization::Int8).step_weight_bytes;
    let num_layers = (2 * like.num_layers).max(model.num_layers);
    let with = |intermediate_size| ModelConfig { num_layers, intermediate_size, ..model.clone() };
    let narrow = with(model.intermediate_size.next_multiple_of(WIDTH));
    let each = bytes(&with(narrow.intermediate_size + WIDTH)) - bytes(&narrow);
    let missing = bytes(like).saturating_sub(bytes(&narrow)) / each.max(1);
    with(narrow.intermediate_size + missing as usize * WIDTH)
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
    let own: HashMap<_, _> =
        files.tensors().map(|info| (info.name.as_str(), info.shape.as_slice())).collect();
    for (name, shape) in tensor_shapes(config) {
        let (rows, columns) = table(&shape);
        if let Some(own) = own.get(name.as_str()) {
            let values = files.read_f32(&name).map_err(io::Error::other)?;
            for (row, values) in values.chunks_exact(table(own).1).enumerate() {
                put(&mut out, begin + bytes(row * columns), values)?;
            }
        } else if shape.len() == 1 {
            // The gains of a norm. All other new numbers are holes in the file, which are read as zeros.
            put(&mut out, begin, &vec![1.0; columns])?;
        }
        begin += bytes(rows * columns);
    }
    let file = out.into_inner()?;
    file.set_len(begin)?;
    file.sync_all()
}

fn put(out: &mut (impl Write + Seek), at: u64, values: &[f32]) -> io::Result<()> {
    let bytes: Vec<u8> =
        values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
    out.seek(SeekFrom::Start(at))?;
    out.write_all(&bytes)
}

/// Bytes of so many numbers.
fn bytes(count: usize) -> u64 {
    (count * size_of::<bf16>()) as u64
}

/// Rows and columns; one row of what is no matrix.
fn table(shape: &[usize]) -> (usize, usize) {
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
    fn a_padded_model_costs_more_and_computes_the_same() {
        let cache = tempfile::tempdir().unwrap();
        let folder = prepare(Shape::Tiny, cache.path()).unwrap();
        let (small, large) =
            (loading::open(&ModelSource::Bundled).unwrap(), ModelFiles::open(&folder).unwrap());
        assert!(large.config().num_layers >= small.config().num_layers);
        for info in small.tensors() {
            let (own, kept) = (small.read_f32(&info.name), large.read_f32(&info.name));
            let (own, kept) = (own.unwrap(), kept.unwrap());
            let columns = table(&info.shape).1;
            let wide = large.tensors().find(|other| other.name == info.name).unwrap();
            let rows = kept.chunks_exact(table(&wide.shape).1);
            let mut rows = rows.map(|row| row.split_at(columns));
            for own in own.chunks_exact(columns) {
                let (kept, padding) = rows.next().unwrap();
                assert_eq!(kept, own, "{}", info.name);
                assert!(padding.iter().all(|value| *value == 0.0), "{}", info.name);
            }
            assert!(rows.all(|(a, b)| a.iter().chain(b).all(|value| *value == 0.0)));
        }
        let like = padded(small.config(), &Shape::TinyLlama.config());
        let bytes = |config| Footprint::of(config, Quantization::Int8).step_weight_bytes as f64;
        let ratio = bytes(&like) / bytes(&Shape::TinyLlama.config());
        assert!((0.99..1.01).contains(&ratio), "{ratio}");
    }
}

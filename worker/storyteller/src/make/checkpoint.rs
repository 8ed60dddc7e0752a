//! Weights on disk: SafeTensors in bfloat16 for the world, in full precision to continue a training run.

use std::{collections::HashMap, fs, path::Path};

use burn::tensor::{Device, Tensor, TensorData};
use half::bf16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::make::{
    adamw::AdamW,
    config::ModelConfig,
    error::{Error, Result, at},
    weights::{Weights, specs},
};

fn weights_error(error: impl std::fmt::Display) -> Error {
    Error::Weights(error.to_string())
}

/// The values of a tensor, row by row.
fn values(tensor: &Tensor<2>) -> Result<Vec<f32>> {
    tensor.try_to_vec_as::<f32>().map_err(|error| Error::Weights(format!("{error:?}")))
}

/// `model.safetensors`: every parameter in bfloat16 under its checkpoint name.
pub fn to_safetensors(config: &ModelConfig, weights: &Weights<Tensor<2>>) -> Result<Vec<u8>> {
    let mut stored = Vec::new();
    for (spec, tensor) in specs(config).zip(weights.as_ref()).iter() {
        let bytes: Vec<u8> =
            values(tensor)?.into_iter().flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect();
        stored.push((spec.name.clone(), spec.stored_shape(), bytes));
    }
    serialize(&stored, Dtype::BF16, HashMap::from([("format".into(), "pt".into())]))
}

/// Reads weights back, from bfloat16 or single precision; every name and shape must be the config's.
pub fn from_safetensors(
    config: &ModelConfig,
    bytes: &[u8],
    device: &Device,
) -> Result<Weights<Tensor<2>>> {
    let file = SafeTensors::deserialize(bytes).map_err(weights_error)?;
    let mut failure = None;
    let weights = specs(config).map(|spec| {
        let read = || -> Result<Vec<f32>> {
            let view = file.tensor(&spec.name).map_err(weights_error)?;
            if view.shape() != spec.stored_shape() {
                return Err(Error::Weights(format!("{} has shape {:?}", spec.name, view.shape())));
            }
            match view.dtype() {
                Dtype::BF16 => {
                    Ok(pairs(view.data()).map(|b| bf16::from_le_bytes(b).to_f32()).collect())
                }
                Dtype::F32 => Ok(quads(view.data()).map(f32::from_le_bytes).collect()),
                other => Err(Error::Weights(format!("{} is {other:?}", spec.name))),
            }
        };
        let values = read().unwrap_or_else(|error| {
            failure.get_or_insert(error);
            vec![0.0; spec.len()]
        });
        Tensor::from_data(TensorData::new(values, spec.shape), device)
    });
    failure.map_or(Ok(weights), Err)
}

/// Where a training run stands.
#[derive(Debug)]
pub struct Progress {
    /// Steps done.
    pub step: usize,
    /// Where the next batch begins in the stream of tokens.
    pub cursor: usize,
    /// The weights now.
    pub weights: Weights<Tensor<2>>,
    /// The optimiser's memory.
    pub optimiser: AdamW,
}

/// Writes everything that a run by this `plan` needs to go on; the file is complete or absent, never half.
pub fn save_progress(
    path: &Path,
    plan: &str,
    config: &ModelConfig,
    progress: &Progress,
) -> Result<()> {
    let parts = [
        ("", &progress.weights),
        ("mean.", &progress.optimiser.mean),
        ("square.", &progress.optimiser.square),
    ];
    let mut stored = Vec::new();
    for (prefix, part) in parts {
        for (spec, tensor) in specs(config).zip(part.as_ref()).iter() {
            let bytes: Vec<u8> = values(tensor)?.into_iter().flat_map(f32::to_le_bytes).collect();
            stored.push((format!("{prefix}{}", spec.name), spec.stored_shape(), bytes));
        }
    }
    let place = HashMap::from([
        ("plan".to_owned(), plan.to_owned()),
        ("step".to_owned(), progress.step.to_string()),
        ("cursor".to_owned(), progress.cursor.to_string()),
    ]);
    let bytes = serialize(&stored, Dtype::F32, place)?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(at(folder))?;
    }
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes).map_err(at(&partial))?;
    fs::rename(&partial, path).map_err(at(path))
}

/// Reads what [`save_progress`] wrote; `None` where there is no file, or one of another `plan`.
pub fn load_progress(
    path: &Path,
    plan: &str,
    config: &ModelConfig,
    device: &Device,
) -> Result<Option<Progress>> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = fs::read(path).map_err(at(path))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(weights_error)?;
    let noted = |key: &str| header.metadata().as_ref().and_then(|place| place.get(key));
    let number = |key: &str| {
        noted(key)
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| Error::Weights(format!("no {key} in it")))
    };
    if noted("plan").is_none_or(|noted| noted != plan) {
        return Ok(None);
    }
    let file = SafeTensors::deserialize(&bytes).map_err(weights_error)?;
    let part = |prefix: &str| {
        let mut tensors = Vec::new();
        for spec in specs(config).iter() {
            let view = file.tensor(&format!("{prefix}{}", spec.name)).map_err(weights_error)?;
            tensors.push((spec.name.clone(), spec.stored_shape(), view.data().to_vec()));
        }
        from_safetensors(config, &serialize(&tensors, Dtype::F32, HashMap::new())?, device)
    };
    Ok(Some(Progress {
        step: number("step")?,
        cursor: number("cursor")?,
        weights: part("")?,
        optimiser: AdamW { mean: part("mean.")?, square: part("square.")? },
    }))
}

fn serialize(
    tensors: &[(String, Vec<usize>, Vec<u8>)],
    dtype: Dtype,
    metadata: HashMap<String, String>,
) -> Result<Vec<u8>> {
    let mut views = Vec::new();
    for (name, shape, bytes) in tensors {
        views.push((name, TensorView::new(dtype, shape.clone(), bytes).map_err(weights_error)?));
    }
    safetensors::serialize(views, Some(metadata)).map_err(weights_error)
}

fn pairs(bytes: &[u8]) -> impl Iterator<Item = [u8; 2]> {
    bytes.chunks_exact(2).map(|b| [b[0], b[1]])
}

fn quads(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]])
}

//! Weights on disk: SafeTensors in bfloat16 for inference, in f32 to resume a training run.

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

/// Returns the values of a tensor in row-major order.
fn values(tensor: &Tensor<2>) -> Result<Vec<f32>> {
    tensor.try_to_vec_as::<f32>().map_err(|error| Error::Weights(format!("{error:?}")))
}

/// Returns the contents of `model.safetensors`: every parameter in bfloat16, by checkpoint name.
pub fn to_safetensors(config: &ModelConfig, weights: &Weights<Tensor<2>>) -> Result<Vec<u8>> {
    let mut stored = Vec::new();
    for (spec, tensor) in specs(config).zip(weights.as_ref()).iter() {
        let bytes: Vec<u8> =
            values(tensor)?.into_iter().flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect();
        stored.push((spec.name.clone(), spec.stored_shape(), bytes));
    }
    serialize(&stored, Dtype::BF16, HashMap::from([("format".into(), "pt".into())]))
}

/// Reads weights in bfloat16 or f32. Names and shapes must match `config`.
pub fn from_safetensors(
    config: &ModelConfig,
    bytes: &[u8],
    device: &Device,
) -> Result<Weights<Tensor<2>>> {
    let file = SafeTensors::deserialize(bytes).map_err(weights_error)?;
    let mut first_error = None;
    let weights = specs(config).map(|spec| {
        let read_values = || -> Result<Vec<f32>> {
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
        let values = read_values().unwrap_or_else(|error| {
            first_error.get_or_insert(error);
            vec![0.0; spec.len()]
        });
        Tensor::from_data(TensorData::new(values, spec.shape), device)
    });
    first_error.map_or(Ok(weights), Err)
}

/// The state of a training run.
#[derive(Debug)]
pub struct TrainingState {
    /// Number of completed steps.
    pub step: usize,
    /// Start of the next batch in the stream of tokens.
    pub cursor: usize,
    /// The current weights.
    pub weights: Weights<Tensor<2>>,
    /// The optimiser's state.
    pub optimiser: AdamW,
}

/// Writes everything that a run of this `plan` needs to resume. The write is atomic.
pub fn save_checkpoint(
    path: &Path,
    plan: &str,
    config: &ModelConfig,
    state: &TrainingState,
) -> Result<()> {
    let parts = [
        ("", &state.weights),
        ("mean.", &state.optimiser.mean),
        ("square.", &state.optimiser.square),
    ];
    let mut stored = Vec::new();
    for (prefix, weights) in parts {
        for (spec, tensor) in specs(config).zip(weights.as_ref()).iter() {
            let bytes: Vec<u8> = values(tensor)?.into_iter().flat_map(f32::to_le_bytes).collect();
            stored.push((format!("{prefix}{}", spec.name), spec.stored_shape(), bytes));
        }
    }
    let metadata = HashMap::from([
        ("plan".to_owned(), plan.to_owned()),
        ("step".to_owned(), state.step.to_string()),
        ("cursor".to_owned(), state.cursor.to_string()),
    ]);
    let bytes = serialize(&stored, Dtype::F32, metadata)?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(at(folder))?;
    }
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes).map_err(at(&partial))?;
    fs::rename(&partial, path).map_err(at(path))
}

/// Reads the file of [`save_checkpoint`]. Returns `None` if there is no file, or if it is a
/// checkpoint of another `plan`.
pub fn load_checkpoint(
    path: &Path,
    plan: &str,
    config: &ModelConfig,
    device: &Device,
) -> Result<Option<TrainingState>> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = fs::read(path).map_err(at(path))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(weights_error)?;
    let text = |key: &str| header.metadata().as_ref().and_then(|metadata| metadata.get(key));
    let number = |key: &str| {
        text(key)
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| Error::Weights(format!("the metadata has no {key}")))
    };
    if text("plan").is_none_or(|text| text != plan) {
        return Ok(None);
    }
    let file = SafeTensors::deserialize(&bytes).map_err(weights_error)?;
    let weights = |prefix: &str| {
        let mut tensors = Vec::new();
        for spec in specs(config).iter() {
            let view = file.tensor(&format!("{prefix}{}", spec.name)).map_err(weights_error)?;
            tensors.push((spec.name.clone(), spec.stored_shape(), view.data().to_vec()));
        }
        from_safetensors(config, &serialize(&tensors, Dtype::F32, HashMap::new())?, device)
    };
    Ok(Some(TrainingState {
        step: number("step")?,
        cursor: number("cursor")?,
        weights: weights("")?,
        optimiser: AdamW { mean: weights("mean.")?, square: weights("square.")? },
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

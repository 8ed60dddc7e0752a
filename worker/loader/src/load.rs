//! Opens devices and files, and loads weights, with a progress bar on terminals.

use indicatif::{ProgressBar, ProgressStyle};
use stoker_engine::{
    Model,
    model::{LoadTimings, Quantization},
    speculation::{Incompatible, compatible},
    weights::{ModelFiles, TemplateFileError, WeightsError},
};
use stoker_ops::{Device, cpu, device::DeviceError};

use crate::{
    config::{DeviceConfig, SpeculationError},
    memory::InsufficientMemory,
    source::{BUNDLED, BUNDLED_DRAFT, ModelSource},
};

/// Why a model is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The files of the model are missing or invalid.
    #[error("--model: {0}")]
    Weights(Box<WeightsError>),
    /// The file of a chat template cannot be read.
    #[error("--chat-template: {0}")]
    ChatTemplate(#[from] TemplateFileError),
    /// The device cannot be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The flags of speculative decoding contradict each other or the model.
    #[error(transparent)]
    Speculation(#[from] SpeculationError),
    /// The files of the draft model are missing or invalid.
    #[error("--draft-model: {0}")]
    DraftWeights(Box<WeightsError>),
    /// The draft model does not match the model.
    #[error("--draft-model {draft} {why}")]
    Draft {
        /// Name of the draft model.
        draft: String,
        /// Why it does not match.
        why: Incompatible,
    },
    /// The memory is too small.
    #[error(transparent)]
    InsufficientMemory(#[from] InsufficientMemory),
}

impl From<WeightsError> for LoadError {
    fn from(error: WeightsError) -> Self {
        Self::Weights(Box::new(error))
    }
}

/// Opens a device. Logs each device that `auto` skips.
pub fn device(config: &DeviceConfig) -> Result<Device, DeviceError> {
    config.disable_gpu_feature.iter().for_each(|feature| feature.turn_off());
    let device = Device::open(config.device, |error| {
        tracing::warn!(%error, "device skipped");
    })?;
    tracing::info!(class = device.class, name = device.name, "device");
    Ok(device)
}

/// Opens the files of a model.
pub fn open(source: &ModelSource) -> Result<ModelFiles, WeightsError> {
    match source {
        ModelSource::Path(path) => ModelFiles::open(path),
        // A simulated model has the vocabulary of the bundled one and no weights.
        ModelSource::Bundled | ModelSource::Simulated(_) => {
            ModelFiles::embedded(BUNDLED, storyteller::model())
        }
        ModelSource::BundledDraft => ModelFiles::embedded(BUNDLED_DRAFT, storyteller::draft()),
    }
}

/// Loads all weights of the model `name`, with a progress bar if standard error is a terminal.
pub fn read(
    files: &ModelFiles,
    name: &str,
    quantization: Quantization,
    device: &Device,
) -> Result<Model, WeightsError> {
    let bar = ProgressBar::no_length().with_style(style()).with_prefix(name.to_owned());
    let model = Model::load(files, device, quantization, |progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    });
    bar.finish_and_clear();
    model
}

/// Loads the draft model `name` of `model`.
pub fn set_draft(
    model: &mut Model,
    files: &ModelFiles,
    name: String,
    device: &Device,
) -> Result<(), LoadError> {
    let draft = read(files, &name, model.quantization, device)
        .map_err(|error| LoadError::DraftWeights(Box::new(error)))?;
    compatible(model, &draft).map_err(|why| LoadError::Draft { draft: name, why })?;
    model.draft = Some(Box::new(draft));
    Ok(())
}

/// Returns the line of `--load-timings`.
pub fn format_timings(timings: &LoadTimings, device: &Device) -> String {
    let LoadTimings { read, quantize, pack, digest, total } = timings;
    format!(
        "Loaded in {total:.2?}: read {read:.2?}, quantized {quantize:.2?}, packed {pack:.2?}, \
         hashed {digest:.2?} ({} threads, {})",
        cpu::threads(),
        device.name,
    )
}

fn style() -> ProgressStyle {
    let template = "Loading {prefix} {wide_bar} {binary_bytes}/{binary_total_bytes}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

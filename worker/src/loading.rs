//! Finds and loads a model, with a progress bar on terminals.

use std::{num::NonZeroUsize, path::PathBuf, str::FromStr};

use indicatif::{ProgressBar, ProgressStyle};
use stoker_engine::{
    Model,
    model::{LoadTimings, Quantization},
    simulate::Profile,
    speculation::{Incompatible, compatible},
    weights::{ModelFiles, WeightsError},
};

use stoker_ops::{
    Device,
    cpu::{self, isa::Isa},
    device::DeviceError,
};

use crate::{
    WorkerConfig,
    config::{ConfigError, DeviceConfig},
    gpu,
    memory::{FreeMemory, InsufficientMemory, MemoryRequirement},
    simulate,
};

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

/// Name of the bundled model, on the command line and in requests.
pub const BUNDLED: &str = "storyteller";
/// Name of the bundled draft model.
const BUNDLED_DRAFT: &str = "storyteller-draft";

/// Why a model is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The files of the model are missing or invalid.
    #[error("--model: {0}")]
    Weights(Box<WeightsError>),
    /// The device cannot be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Settings contradict each other or the model.
    #[error(transparent)]
    Config(#[from] ConfigError),
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

/// Loads a model onto its device for `workers` workers, which share it. A model that does not fit
/// into memory together with their KV caches is rejected before any weight is read.
pub fn load(source: &ModelSource, config: &WorkerConfig, workers: u16) -> Result<Model, LoadError> {
    load_within(FreeMemory::now(), source, config, workers)
}

fn load_within(
    free: Option<FreeMemory>,
    source: &ModelSource,
    config: &WorkerConfig,
    workers: u16,
) -> Result<Model, LoadError> {
    let draft = config.compute.speculation.draft(source)?;
    if let ModelSource::Simulated(profile) = source {
        let context = config.context(profile.context_length as usize)?;
        let context_length = u32::try_from(context).unwrap_or(u32::MAX);
        return Ok(simulate::model(Profile { context_length, ..*profile })?);
    }
    if let Some(threads) = config.compute.threads.and_then(|count| NonZeroUsize::new(count.into()))
    {
        // Has no effect if another model of this process has set it before.
        cpu::set_threads(threads);
    }
    let mut files = open(source)?;
    files.limit_context(config.context(files.config().context_length)?);
    let draft_error = |error| LoadError::DraftWeights(Box::new(error));
    let draft = draft.map(|draft| Ok((open(&draft)?, draft.name()))).transpose();
    let draft = draft.map_err(draft_error)?;
    let quantize = config.compute.quantize;
    let draft_config = draft.as_ref().map(|(files, _)| files.config());
    let engine = config.engine(files.config(), draft_config, quantize)?;
    let device = device(&config.compute.device)?;
    let mut required = MemoryRequirement::of(files.config(), quantize, &engine, workers);
    if let Some((files, _)) = &draft {
        required.add_draft(MemoryRequirement::of(files.config(), quantize, &engine, workers));
    }
    let free = if device.is_cpu() { free } else { gpu::free_memory(&device) };
    required.check(files.name(), free)?;
    let mut model = read(&files, &source.name(), quantize, &device)?;
    if let Some((files, name)) = draft {
        set_draft(&mut model, &files, name, &device)?;
    }
    if config.compute.load_timings {
        eprintln!("{}", format_timings(&model.load_timings, &device));
    }
    let isa = Isa::best();
    if device.is_cpu() && isa.is_baseline() {
        tracing::warn!(
            arch = std::env::consts::ARCH,
            "no fast kernels for this CPU: the portable ones are much slower (the fast ones need \
             x86-64 with AVX2, FMA and F16C)"
        );
    }
    tracing::debug!(device.class, device.name, threads = cpu::threads(), "loaded");
    Ok(model)
}

/// Loads the draft model of `model`.
pub(crate) fn add_draft(
    model: &mut Model,
    draft: &ModelSource,
    device: &Device,
) -> Result<(), LoadError> {
    let files = open(draft).map_err(|error| LoadError::DraftWeights(Box::new(error)))?;
    set_draft(model, &files, draft.name(), device)
}

fn set_draft(
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
fn format_timings(timings: &LoadTimings, device: &Device) -> String {
    let LoadTimings { read, quantize, pack, digest, total } = timings;
    format!(
        "Loaded in {total:.2?}: read {read:.2?}, quantized {quantize:.2?}, packed {pack:.2?}, \
         hashed {digest:.2?} ({} threads, {})",
        cpu::threads(),
        device.name,
    )
}

/// Opens a device. Logs each device that `auto` skips.
pub(crate) fn device(config: &DeviceConfig) -> Result<Device, DeviceError> {
    config.disable_gpu_feature.iter().for_each(|feature| feature.turn_off());
    let device = Device::open(config.device, |error| {
        tracing::warn!(%error, "device skipped");
    })?;
    tracing::info!(class = device.class, name = device.name, "device");
    Ok(device)
}

/// Opens the files of a model.
pub(crate) fn open(source: &ModelSource) -> Result<ModelFiles, WeightsError> {
    match source {
        ModelSource::Path(path) => ModelFiles::open(path),
        // A simulated model has the vocabulary of the bundled one and no weights.
        ModelSource::Bundled | ModelSource::Simulated(_) => {
            ModelFiles::embedded(BUNDLED, storyteller::model())
        }
        ModelSource::BundledDraft => ModelFiles::embedded(BUNDLED_DRAFT, storyteller::draft()),
    }
}

/// Loads all weights, with a progress bar if standard error is a terminal.
pub(crate) fn read(
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

fn style() -> ProgressStyle {
    let template = "Loading {prefix} {wide_bar} {binary_bytes}/{binary_total_bytes}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::ComputeConfig, memory::MemorySource};

    #[test]
    fn a_model_is_loaded_only_if_it_fits_into_memory() {
        let compute = ComputeConfig { quantize: Quantization::None, ..ComputeConfig::default() };
        let config = WorkerConfig { compute, max_num_seqs: 4, ..WorkerConfig::default() };
        let load = |bytes, workers| {
            let free = FreeMemory { bytes, source: MemorySource::Cgroup { limit: 1 << 30 } };
            let model = load_within(Some(free), &ModelSource::Bundled, &config, workers);
            model.map(|_| ()).map_err(|error| error.to_string())
        };
        // 5 MiB of weights in f32, and 4 contexts of 1,024 tokens with 3 KiB per token.
        assert_eq!(load(20 << 20, 1), Ok(()));
        for (bytes, workers, part) in [(4 << 20, 1, "smaller model"), (20 << 20, 2, "2 x 12.0 MiB")]
        {
            let message = load(bytes, workers).err().unwrap_or_default();
            for part in [part, "--model storyteller needs", "cgroup is 1.0 GiB"] {
                assert!(message.contains(part), "{part:?} is not in {message:?}");
            }
        }
    }

    #[test]
    fn contradicting_settings_are_rejected_before_weights_are_read() {
        let config = WorkerConfig { max_num_batched_tokens: 1, ..WorkerConfig::default() };
        let error = load_within(None, &ModelSource::Bundled, &config, 1).err();
        assert!(matches!(error, Some(LoadError::Config(_))), "{error:?}");
    }
}

//! Finds and loads a model, with progress for those who watch.

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
    memory::{FreeMemory, MemoryRequirement, TooLarge},
    simulate,
};

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// The story model that is part of this program.
    Bundled,
    /// The model that guesses for it, also a part.
    BundledDraft,
    /// A folder of SafeTensors, config.json and tokenizer.json, or a GGUF file.
    Path(PathBuf),
    /// No model: a device that is simulated by a profile.
    Simulated(Profile),
}

/// The name of the bundled model, on the command line and in requests.
pub const BUNDLED: &str = "storyteller";
/// The name of its draft.
const BUNDLED_DRAFT: &str = "storyteller-draft";

/// Why a model is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its files.
    #[error("--model: {0}")]
    Weights(Box<WeightsError>),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Settings that contradict each other or the model.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The files of the model that guesses.
    #[error("--draft-model: {0}")]
    DraftWeights(Box<WeightsError>),
    /// It cannot guess for the other.
    #[error("--draft-model {draft} {why}")]
    Draft {
        /// Its name.
        draft: String,
        /// Why not.
        why: Incompatible,
    },
    /// There is not the memory for it.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
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
    /// What requests call the model: the last part of its path, without `.gguf`.
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

/// Loads a model onto its device for so many workers, which share it. One that does not fit into memory
/// together with their caches is refused before a weight is read.
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
        // Another model of this process may have decided it.
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
    let mut needs = MemoryRequirement::of(files.config(), quantize, &engine, workers);
    if let Some((files, _)) = &draft {
        needs.add(MemoryRequirement::of(files.config(), quantize, &engine, workers));
    }
    let free = if device.is_cpu() { free } else { gpu::free(&device) };
    needs.check(files.name(), free)?;
    let mut model = read(&files, &source.name(), quantize, &device)?;
    if let Some((files, name)) = draft {
        set_draft(&mut model, &files, name, &device)?;
    }
    if config.compute.load_timings {
        eprintln!("{}", times(&model.load_timings, &device));
    }
    let isa = Isa::best();
    if device.is_cpu() && isa.is_baseline() {
        tracing::warn!(
            arch = std::env::consts::ARCH,
            "no fast path for this CPU: portable code computes, which is much slower (the fast \
             ones need x86-64 with AVX2, FMA and F16C)"
        );
    }
    tracing::debug!(device.class, device.name, threads = cpu::threads(), "loaded");
    Ok(model)
}

/// Reads the model that guesses for `model`.
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

/// A line for those who ask.
fn times(times: &LoadTimings, device: &Device) -> String {
    let LoadTimings { read, quantize, pack, digest, total } = times;
    format!(
        "Loaded in {total:.2?}: read {read:.2?}, quantized {quantize:.2?}, packed {pack:.2?}, \
         hashed {digest:.2?} ({} threads, {})",
        cpu::threads(),
        device.name,
    )
}

/// Opens a device. One that `auto` passes over is logged.
pub(crate) fn device(config: &DeviceConfig) -> Result<Device, DeviceError> {
    config.disable_gpu_feature.iter().for_each(|part| part.turn_off());
    let device = Device::open(config.device, |error| {
        tracing::warn!(%error, "passed over");
    })?;
    tracing::info!(class = device.class, name = device.name, "device");
    Ok(device)
}

/// Opens the files of a model that has some.
pub(crate) fn open(source: &ModelSource) -> Result<ModelFiles, WeightsError> {
    match source {
        ModelSource::Path(path) => ModelFiles::open(path),
        // A simulated device has the vocabulary of the bundled model, and no weights.
        ModelSource::Bundled | ModelSource::Simulated(_) => {
            ModelFiles::embedded(BUNDLED, storyteller::model())
        }
        ModelSource::BundledDraft => ModelFiles::embedded(BUNDLED_DRAFT, storyteller::draft()),
    }
}

/// Reads all weights. Shows a bar on a terminal and nothing in a pipe.
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
    use crate::{config::ComputeConfig, memory::Memory};

    #[test]
    fn a_model_without_room_is_refused_and_one_with_it_is_loaded() {
        let compute = ComputeConfig { quantize: Quantization::None, ..ComputeConfig::default() };
        let config = WorkerConfig { compute, max_num_seqs: 4, ..WorkerConfig::default() };
        let loaded = |bytes, workers| {
            let free = FreeMemory { bytes, of: Memory::Group { limit: 1 << 30 } };
            let model = load_within(Some(free), &ModelSource::Bundled, &config, workers);
            model.map(|_| ()).map_err(|error| error.to_string())
        };
        // 5 MiB of weights in f32, and 4 contexts of 1,024 tokens at 3 KiB each.
        assert_eq!(loaded(20 << 20, 1), Ok(()));
        for (bytes, workers, part) in [(4 << 20, 1, "smaller model"), (20 << 20, 2, "2 x 12.0 MiB")]
        {
            let message = loaded(bytes, workers).err().unwrap_or_default();
            for part in [part, "--model storyteller needs", "control group is 1.0 GiB"] {
                assert!(message.contains(part), "{part:?} is not in {message:?}");
            }
        }
    }

    #[test]
    fn settings_that_contradict_each_other_are_found_before_weights_are_read() {
        let config = WorkerConfig { max_num_batched_tokens: 1, ..WorkerConfig::default() };
        let refused = load_within(None, &ModelSource::Bundled, &config, 1).err();
        assert!(matches!(refused, Some(LoadError::Config(_))), "{refused:?}");
    }
}

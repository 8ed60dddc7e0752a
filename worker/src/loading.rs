//! Loads the model of a worker.

use std::num::NonZeroUsize;

use stoker_engine::{Model, profile::Profile};
use stoker_loader::{
    LoadError as Load, ModelSource, device, format_timings,
    memory::{FreeMemory, MemoryRequirement},
    open, read, set_draft, simulated,
};
use stoker_ops::cpu::{self, isa::Isa};

use crate::config::{ConfigError, WorkerConfig};

/// Why a model is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The model or its device cannot be used.
    #[error(transparent)]
    Load(#[from] Load),
    /// Settings contradict each other or the model.
    #[error(transparent)]
    Config(#[from] ConfigError),
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
    let draft = config.compute.speculation.draft(source).map_err(Load::from)?;
    if let ModelSource::Simulated(profile) = source {
        if config.chat_template.is_some() {
            return Err(ConfigError::SimulatedTemplate.into());
        }
        let context = config.context(profile.context_length as usize)?;
        let context_length = u32::try_from(context).unwrap_or(u32::MAX);
        let model = simulated::model(Profile { context_length, ..*profile });
        return Ok(model.map_err(Load::from)?);
    }
    if let Some(threads) = config.compute.threads.and_then(|count| NonZeroUsize::new(count.into()))
    {
        // Has no effect if another model of this process has set it before.
        cpu::set_threads(threads);
    }
    let mut files = open(source).map_err(Load::from)?;
    files.limit_context(config.context(files.config().context_length)?);
    if let Some(template) = &config.chat_template {
        files.set_chat_template(template).map_err(Load::from)?;
    }
    let draft = draft.map(|draft| Ok((open(&draft)?, draft.name()))).transpose();
    let draft = draft.map_err(|error| Load::DraftWeights(Box::new(error)))?;
    let quantize = config.compute.quantize;
    let draft_config = draft.as_ref().map(|(files, _)| files.config());
    let engine = config.engine(files.config(), draft_config, quantize)?;
    let device = device(&config.compute.device).map_err(Load::from)?;
    let mut required = MemoryRequirement::of(files.config(), quantize, &engine, workers);
    if let Some((files, _)) = &draft {
        required.add_draft(MemoryRequirement::of(files.config(), quantize, &engine, workers));
    }
    let free = if device.is_cpu() { free } else { FreeMemory::of_gpu(&device) };
    required.check(files.name(), free).map_err(Load::from)?;
    let mut model = read(&files, &source.name(), quantize, &device).map_err(Load::from)?;
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

#[cfg(test)]
mod tests {
    use stoker_engine::model::Quantization;
    use stoker_loader::{config::ComputeConfig, memory::MemorySource};

    use super::*;

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

//! The device and the model of a job.

use std::time::{Duration, Instant};

use stoker_engine::{
    Model,
    model::Quantization,
    weights::{ModelConfig, ModelFiles},
};
use stoker_loader::{LoadError, ModelSource};
use stoker_ops::Device;

use super::Progress;
use crate::Error;

/// The device that a workload measures, and the model that it runs.
pub(crate) struct Machine {
    /// The device.
    pub(crate) device: Device,
    /// Where to report progress.
    pub(crate) progress: Progress,
    source: ModelSource,
    quantization: Quantization,
    files: ModelFiles,
    /// Time from opening the files until the model could run.
    load: Duration,
    opening: Duration,
}

impl Machine {
    /// Opens the files of the model.
    pub(crate) fn open(
        source: ModelSource,
        quantization: Quantization,
        device: Device,
        mut progress: Progress,
    ) -> Result<Self, Error> {
        progress.stage(|| "loading".into())?;
        let begun = Instant::now();
        let files = stoker_loader::open(&source)?;
        let opening = begun.elapsed();
        Ok(Self { device, progress, source, quantization, files, load: opening, opening })
    }

    /// Shape of the model.
    pub(crate) fn config(&self) -> &ModelConfig {
        self.files.config()
    }

    /// Loads the model.
    pub(crate) fn load(&mut self) -> Result<Model, Error> {
        let begun = Instant::now();
        let model =
            stoker_loader::read(&self.files, &self.source.name(), self.quantization, &self.device)?;
        self.load = self.opening + begun.elapsed();
        Ok(model)
    }

    /// Loads a draft model for `model`.
    pub(crate) fn load_draft(&self, model: &mut Model, draft: &ModelSource) -> Result<(), Error> {
        let files =
            stoker_loader::open(draft).map_err(|error| LoadError::DraftWeights(Box::new(error)))?;
        Ok(stoker_loader::set_draft(model, &files, draft.name(), &self.device)?)
    }

    /// Sets the time that it took until the model could run, of a workload that makes its own.
    pub(crate) fn set_load_time(&mut self, load: Duration) {
        self.load = load;
    }

    /// Time from opening the files until the model could run.
    pub(crate) fn load_time(&self) -> Duration {
        self.load
    }
}

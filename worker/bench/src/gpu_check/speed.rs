//! Speed of a device, measured by the engine's steps.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use stoker_engine::{Footprint, Model, model::Quantization, weights::ModelConfig};
use stoker_ops::{
    Device,
    device::{Copies, sensors::Reading},
    timeline,
};

use crate::{
    Error,
    harness::{self, Harness, Measurement, Progress, SequenceEvent, lengths},
};

/// Measured tokens of each sequence.
const TOKENS: usize = 64;
/// Length of the prompt that is measured on its own.
const PROMPT: usize = 1536;
/// Steps that are timed kernel by kernel.
const STEPS: u32 = 8;
/// Time for which copies keep the device busy before each timed step.
const QUEUED_WORK: Duration = Duration::from_millis(30);
/// Maximum growth of sequences, in positions, until their steps are timed kernel by kernel.
const GROWTH: usize = 128;

/// Measures the speed of a device.
pub(super) struct Speed<'a> {
    device: &'a Device,
    copy_rate: f64,
    context: usize,
}

/// One measurement.
#[derive(Debug, Serialize)]
pub(super) struct SpeedRow {
    /// Configuration that was measured.
    pub(super) what: String,
    /// Sequences that decode together. None if a prompt was measured.
    pub(super) batch: Option<usize>,
    /// Context length of each sequence.
    pub(super) context: usize,
    pub(super) first_token_seconds: Option<f64>,
    pub(super) step_seconds: Option<f64>,
    pub(super) decode_tokens_per_second: Option<f64>,
    pub(super) prefill_tokens_per_second: Option<f64>,
    /// Bytes that a step must read times steps per second, divided by the copy rate.
    pub(super) copy_ratio: Option<f64>,
    /// Kernel and graph launches per step.
    pub(super) launches_per_step: Option<f64>,
    pub(super) gpu: Reading,
}

/// Kernel times of a step.
#[derive(Debug, Serialize)]
pub(super) struct Timeline {
    pub(super) batch: usize,
    pub(super) kernels: Vec<Kernel>,
}

/// All launches of a kernel in a step.
#[derive(Debug, Serialize)]
pub(super) struct Kernel {
    pub(super) name: String,
    pub(super) launches: f64,
    pub(super) microseconds: f64,
}

impl<'a> Speed<'a> {
    pub(super) fn new(device: &'a Device, copy_rate: f64, context: usize) -> Self {
        Self { device, copy_rate, context }
    }

    /// Measures the naive decoder with one sequence.
    pub(super) fn naive(&self, config: &ModelConfig) -> Result<SpeedRow, Error> {
        let (_, measurement) =
            harness::naive(config, self.context, self.device, &mut Progress::silent())?;
        let footprint = Footprint::of(config, Quantization::None);
        Ok(self.row("unfused operations in f32", Some(1), self.context, &measurement, footprint))
    }

    /// Measures `batch` sequences that decode together.
    pub(super) fn decode(
        &self,
        what: &str,
        model: &Model,
        batch: usize,
    ) -> Result<SpeedRow, Error> {
        let prompts = self.prompts(batch)?;
        let measurement =
            harness::decode(model.clone(), &prompts, TOKENS, &mut Progress::silent())?;
        let footprint = Footprint::of(&model.config, model.quantization);
        Ok(self.row(what, Some(batch), self.context, &measurement, footprint))
    }

    /// Measures a long prompt on its own.
    pub(super) fn prompt(&self, what: &str, model: &Model) -> Result<SpeedRow, Error> {
        let measurement = harness::decode(model.clone(), &[PROMPT], 2, &mut Progress::silent())?;
        let footprint = Footprint::of(&model.config, model.quantization);
        Ok(self.row(what, None, PROMPT, &measurement, footprint))
    }

    /// Measures the kernel times of a step in which `batch` sequences decode.
    pub(super) fn timeline(&self, model: &Model, batch: usize) -> Result<Timeline, Error> {
        let prompts = self.prompts(batch)?;
        let mut harness = Harness::new(model.clone(), &vec![self.context + GROWTH; batch]);
        for (slot, prompt) in prompts.iter().enumerate() {
            harness.submit(slot, *prompt, 2 * GROWTH)?;
        }
        let mut started = vec![false; batch];
        while started.contains(&false) {
            for (slot, _, event) in harness.step()?.1 {
                started[slot] |= matches!(event, SequenceEvent::Token);
            }
        }
        // The host waits for each timed launch. Copies queued first keep the device busy, so that
        // the timed kernels run back to back.
        let copies = (!self.device.is_cpu()).then(|| Copies::new(&self.device.tensors));
        let mut all: BTreeMap<String, Kernel> = BTreeMap::new();
        for _ in 0..STEPS {
            if let Some(copies) = &copies {
                copies.queue(QUEUED_WORK, self.copy_rate);
            }
            let (stepped, kernels) = timeline::profile(|| harness.step());
            stepped?;
            for kernel in kernels {
                let entry = all.entry(kernel.kernel.clone()).or_insert_with(|| Kernel {
                    name: kernel.kernel,
                    launches: 0.0,
                    microseconds: 0.0,
                });
                entry.launches += kernel.launches as f64 / f64::from(STEPS);
                entry.microseconds += kernel.time.as_secs_f64() * 1e6 / f64::from(STEPS);
            }
        }
        let mut kernels: Vec<_> = all.into_values().collect();
        kernels.sort_by(|a, b| b.microseconds.total_cmp(&a.microseconds));
        Ok(Timeline { batch, kernels })
    }

    fn prompts(&self, batch: usize) -> Result<Vec<usize>, Error> {
        let length = self.context - TOKENS / 2;
        lengths::prompts(batch, length).ok_or_else(|| {
            let context = self.context;
            Error::Usage(format!(
                "--context {context} is too short for {batch} sequences; raise it"
            ))
        })
    }

    fn row(
        &self,
        what: &str,
        batch: Option<usize>,
        context: usize,
        measurement: &Measurement,
        footprint: Footprint,
    ) -> SpeedRow {
        let seconds = measurement.step.as_secs_f64();
        let sequences = batch.unwrap_or(1);
        let bytes =
            footprint.step_weight_bytes + footprint.kv_token_bytes * (context * sequences) as u64;
        SpeedRow {
            what: what.into(),
            batch,
            context,
            first_token_seconds: measurement.ttft.map(|time| time.as_secs_f64()),
            step_seconds: batch.map(|_| seconds),
            decode_tokens_per_second: batch.map(|_| measurement.decode_rate),
            prefill_tokens_per_second: measurement.prefill_rate,
            copy_ratio: batch.map(|_| bytes as f64 / seconds / self.copy_rate),
            launches_per_step: measurement.launches,
            gpu: measurement.gpu,
        }
    }
}

//! How fast a device is, by the engine's own steps.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use stoker_engine::{Footprint, Model, model::Quantization, weights::ModelConfig};
use stoker_ops::{Device, device::Copies, timeline};

use crate::{
    bench::{
        Error,
        child::Tell,
        drive::{self, Driven, Pace, Seen},
        lengths, measure,
    },
    gpu::Reading,
};

/// Tokens of each sequence that are measured.
const TOKENS: usize = 64;
/// The prompt that is timed by itself.
const PROMPT: usize = 1536;
/// Steps whose kernels are timed.
const STEPS: u32 = 8;
/// What the device is kept busy with before each of them.
const BUSY: Duration = Duration::from_millis(30);
/// Positions by which sequences grow until their kernels are timed, at most.
const GROWTH: usize = 128;

/// What was measured, and with what.
pub(super) struct Speed<'a> {
    device: &'a Device,
    copy_rate: f64,
    context: usize,
}

/// What was measured once.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    /// What computed.
    pub(super) what: String,
    /// Sequences that decode together; none where a prompt was timed.
    pub(super) batch: Option<usize>,
    /// Positions of each.
    pub(super) context: usize,
    pub(super) first_token_seconds: Option<f64>,
    pub(super) step_seconds: Option<f64>,
    pub(super) decode_tokens_per_second: Option<f64>,
    pub(super) prefill_tokens_per_second: Option<f64>,
    /// Bytes that a step must read, times steps a second, over what a copy reads and writes.
    pub(super) copy_ratio: Option<f64>,
    /// Kernels and graphs.
    pub(super) launches_per_step: Option<f64>,
    pub(super) gpu: Reading,
}

/// The kernels of a step.
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

    /// A decoder of plain operations, one sequence.
    pub(super) fn naive(&self, config: &ModelConfig) -> Result<Row, Error> {
        let (_, pace) = measure::naive(config, self.context, self.device, &mut Tell::nobody())?;
        let footprint = Footprint::of(config, Quantization::None);
        Ok(self.row("plain operations in f32", Some(1), self.context, &pace, footprint))
    }

    /// `batch` sequences that decode together.
    pub(super) fn decode(&self, what: &str, model: &Model, batch: usize) -> Result<Row, Error> {
        let prompts = self.prompts(batch)?;
        let pace = drive::decode(model.clone(), &prompts, TOKENS, &mut Tell::nobody())?;
        let footprint = Footprint::of(&model.config, model.quantization);
        Ok(self.row(what, Some(batch), self.context, &pace, footprint))
    }

    /// A long prompt by itself.
    pub(super) fn prompt(&self, what: &str, model: &Model) -> Result<Row, Error> {
        let pace = drive::decode(model.clone(), &[PROMPT], 2, &mut Tell::nobody())?;
        let footprint = Footprint::of(&model.config, model.quantization);
        Ok(self.row(what, None, PROMPT, &pace, footprint))
    }

    /// Where the time of a step goes in which `batch` sequences decode.
    pub(super) fn timeline(&self, model: &Model, batch: usize) -> Result<Timeline, Error> {
        let prompts = self.prompts(batch)?;
        let mut driven = Driven::new(model.clone(), &vec![self.context + GROWTH; batch]);
        for (place, prompt) in prompts.iter().enumerate() {
            driven.submit(place, *prompt, 2 * GROWTH)?;
        }
        let mut begun = vec![false; batch];
        while begun.contains(&false) {
            for (place, _, seen) in driven.step()?.1 {
                begun[place] |= matches!(seen, Seen::Token);
            }
        }
        // Each launch that is timed is waited for by the host, so the device gets something to do first: what is timed
        // then stands in its queue and runs without a pause.
        let copies = (!self.device.is_cpu()).then(|| Copies::new(&self.device.tensors));
        let mut all: BTreeMap<String, Kernel> = BTreeMap::new();
        for _ in 0..STEPS {
            if let Some(copies) = &copies {
                copies.queue(BUSY, self.copy_rate);
            }
            let (stepped, kernels) = timeline::of(|| driven.step());
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
        pace: &Pace,
        footprint: Footprint,
    ) -> Row {
        let seconds = pace.step.as_secs_f64();
        let sequences = batch.unwrap_or(1);
        let bytes =
            footprint.step_weight_bytes + footprint.kv_token_bytes * (context * sequences) as u64;
        Row {
            what: what.into(),
            batch,
            context,
            first_token_seconds: pace.first_token.map(|time| time.as_secs_f64()),
            step_seconds: batch.map(|_| seconds),
            decode_tokens_per_second: batch.map(|_| pace.decode_rate),
            prefill_tokens_per_second: pace.prefill_rate,
            copy_ratio: batch.map(|_| bytes as f64 / seconds / self.copy_rate),
            launches_per_step: pace.launches,
            gpu: pace.gpu,
        }
    }
}

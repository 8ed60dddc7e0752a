//! How fast a device is, by the engine's own steps.

use serde::Serialize;
use stoker_engine::{Footprint, Model, model::Quantization, weights::ModelConfig};
use stoker_ops::{Device, timeline};

use crate::{
    bench::{
        Error,
        child::Tell,
        drive::{self, Driven, Pace, Seen},
        lengths, measure,
    },
    gpu::{Reading, Watch},
};

/// Tokens of each sequence that are measured.
const TOKENS: usize = 64;
/// The prompt that is timed by itself.
const PROMPT: usize = 1536;
/// Steps whose kernels are timed.
const STEPS: u32 = 8;
/// Positions by which sequences grow until their kernels are timed, at most.
const GROWTH: usize = 128;

/// What was measured, and with what.
pub(super) struct Speed<'a> {
    device: &'a Device,
    copy_rate: f64,
    context: usize,
    pub(super) rows: Vec<Row>,
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
        Self { device, copy_rate, context, rows: Vec::new() }
    }

    /// A decoder of plain operations, one sequence.
    pub(super) fn naive(&mut self, config: &ModelConfig) -> Result<(), Error> {
        let watch = Watch::begin(self.device);
        let (_, pace) = measure::naive(config, self.context, self.device, &mut Tell::nobody())?;
        let footprint = Footprint::of(config, Quantization::None);
        self.add("plain operations in f32", Some(1), self.context, &pace, footprint, watch.end());
        Ok(())
    }

    /// `batch` sequences that decode together.
    pub(super) fn decode(&mut self, what: &str, model: &Model, batch: usize) -> Result<(), Error> {
        let prompts = self.prompts(batch)?;
        let watch = Watch::begin(self.device);
        let pace = drive::decode(model.clone(), &prompts, TOKENS, &mut Tell::nobody())?;
        let footprint = Footprint::of(&model.config, model.quantization);
        self.add(what, Some(batch), self.context, &pace, footprint, watch.end());
        Ok(())
    }

    /// A long prompt by itself.
    pub(super) fn prompt(&mut self, what: &str, model: &Model) -> Result<(), Error> {
        let watch = Watch::begin(self.device);
        let pace = drive::decode(model.clone(), &[PROMPT], 2, &mut Tell::nobody())?;
        let footprint = Footprint::of(&model.config, model.quantization);
        self.add(what, None, PROMPT, &pace, footprint, watch.end());
        Ok(())
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
        let (stepped, kernels) =
            timeline::of(|| (0..STEPS).try_for_each(|_| driven.step().map(|_| ())));
        stepped?;
        let a_step = |count: f64| count / f64::from(STEPS);
        let kernels = kernels.into_iter().map(|kernel| Kernel {
            name: kernel.kernel,
            launches: a_step(kernel.launches as f64),
            microseconds: a_step(kernel.time.as_secs_f64() * 1e6),
        });
        Ok(Timeline { batch, kernels: kernels.collect() })
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

    fn add(
        &mut self,
        what: &str,
        batch: Option<usize>,
        context: usize,
        pace: &Pace,
        footprint: Footprint,
        gpu: Reading,
    ) {
        let seconds = pace.step.as_secs_f64();
        let sequences = batch.unwrap_or(1);
        let bytes =
            footprint.step_weight_bytes + footprint.kv_token_bytes * (context * sequences) as u64;
        self.rows.push(Row {
            what: what.into(),
            batch,
            context,
            first_token_seconds: pace.first_token.map(|time| time.as_secs_f64()),
            step_seconds: batch.map(|_| seconds),
            decode_tokens_per_second: batch.map(|_| pace.decode_rate),
            prefill_tokens_per_second: pace.prefill_rate,
            copy_ratio: batch.map(|_| bytes as f64 / seconds / self.copy_rate),
            launches_per_step: pace.launches,
            gpu,
        });
    }
}

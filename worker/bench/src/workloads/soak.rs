//! `--soak`: a batch that stays full for a long time.

use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};
use stoker_engine::Model;
use stoker_loader::ModelSource;
use stoker_ops::cpu;
use stoker_shared::duration;

use super::{Case, Options, Workload, options::check_context};
use crate::{
    Error,
    harness::{Harness, Machine, Measurement, Meter, Progress, SequenceEvent, median, overhead},
    models::Target,
};

const NAME: &str = "soak";
/// Default of `--batch`.
const BATCH: usize = 8;
/// Minimum of `--soak`.
const MIN_TIME: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Its flags.
#[derive(Debug, Clone, Args)]
pub(super) struct Soak {
    /// Keep --batch sequences running for this time, replacing those that finish, and print the
    /// throughput of each minute; one row per minute [default batch: 8]
    #[arg(
        long,
        env = "STOKER_BENCH_SOAK",
        group = "workload",
        conflicts_with_all = ["sweep", "runs"],
        value_parser = duration::parse,
        value_name = "TIME",
        help_heading = "What to measure"
    )]
    soak: Option<Duration>,
}

/// Parameters of a case.
#[derive(Debug, Serialize, Deserialize)]
struct Parameters {
    /// Prompt length.
    prompt: usize,
    /// Output length.
    output: usize,
    /// Duration.
    seconds: f64,
}

impl Workload for Soak {
    fn name(&self) -> &'static str {
        NAME
    }

    fn selected_by(&self) -> Option<&'static str> {
        self.soak.map(|_| "--soak")
    }

    fn check(&self, _: &Options, _: &ModelSource) -> Result<(), Error> {
        match self.soak {
            Some(time) if time < MIN_TIME => Err(Error::Usage(format!(
                "--soak {time:?} is too short; the minimum is {MIN_TIME:?}"
            ))),
            _ => Ok(()),
        }
    }

    fn cases(&self, options: &Options, targets: &[Target]) -> Result<Vec<Case>, Error> {
        let (batch, context) = (options.batch_or(BATCH), options.context());
        // A sequence grows from half the context to one and a half times the context.
        let (prompt, output) = (context / 2, context);
        let seconds = self.soak.unwrap_or(MIN_TIME).as_secs_f64();
        let case = |target| {
            check_context(target, context, prompt + output)?;
            let parameters = Parameters { prompt, output, seconds };
            let case = Case::new(NAME, "soak", target, options.quantize, &parameters)?;
            Ok(Case { batch, context, ..case })
        };
        targets.iter().map(case).collect()
    }

    /// Rows of a case are minutes.
    fn repeats(&self) -> bool {
        false
    }

    fn examples(&self) -> &'static [(&'static str, &'static str)] {
        &[("Sustained throughput", "--soak 10m --batch 8")]
    }

    fn measure(&self, case: &Case, machine: &mut Machine) -> Result<Vec<Measurement>, Error> {
        let Parameters { prompt, output, seconds } = case.parameters()?;
        let model = machine.load()?;
        let time = Duration::from_secs_f64(seconds);
        run(model, case.batch, (prompt, output), time, &mut machine.progress)
    }
}

/// Measurements of one minute.
#[derive(Default)]
struct Minute {
    prompt_tokens: usize,
    output_tokens: usize,
    ttfts: Vec<Duration>,
    steps: Vec<Duration>,
}

/// State of the sequence in a slot of the batch.
struct Slot {
    submitted: Instant,
    started: bool,
}

/// Keeps `batch` sequences of `prompt + output` tokens running for `time`. Returns one measurement
/// per minute.
fn run(
    model: Model,
    batch: usize,
    (prompt, output): (usize, usize),
    time: Duration,
    progress: &mut Progress,
) -> Result<Vec<Measurement>, Error> {
    let device = model.network.device().cloned();
    let mut harness = Harness::new(model, &vec![prompt + output; batch]);
    let mut slots = Vec::with_capacity(batch);
    let mut minute = Minute::default();
    for slot in 0..batch {
        // Staggers the lengths of the first sequences, so that sequences finish one after the
        // other.
        harness.submit(slot, prompt, (output * (slot + 1) / batch).max(1))?;
        minute.prompt_tokens += prompt;
        slots.push(Slot { submitted: Instant::now(), started: false });
    }
    let (begun, mut measurements) = (Instant::now(), Vec::new());
    let (mut since, mut kernels) = (begun, cpu::kernel_time());
    let meter = || device.as_ref().map(Meter::begin);
    let mut metered = meter();
    loop {
        let (step, events) = harness.step()?;
        let sampled =
            events.iter().filter(|(_, _, event)| matches!(event, SequenceEvent::Token)).count();
        let mut decode_only = sampled == batch;
        for (slot, at, event) in events {
            let state = &mut slots[slot];
            match event {
                SequenceEvent::Token => {
                    minute.output_tokens += 1;
                    if !state.started {
                        state.started = true;
                        // The step also computed a prompt.
                        decode_only = false;
                        minute.ttfts.push(at.saturating_duration_since(state.submitted));
                    }
                }
                SequenceEvent::Finished => {
                    harness.submit(slot, prompt, output)?;
                    minute.prompt_tokens += prompt;
                    *state = Slot { submitted: Instant::now(), started: false };
                }
                // `Harness::step` returns an error for these.
                SequenceEvent::Failed(_) => {}
            }
        }
        if decode_only {
            minute.steps.push(step);
        }
        let over = begun.elapsed() >= time;
        let elapsed = since.elapsed();
        if elapsed >= MINUTE || over {
            let now = cpu::kernel_time();
            let overhead = overhead(now.saturating_sub(kernels), elapsed);
            let gpu = std::mem::replace(&mut metered, meter()).map(Meter::end);
            let measurement = Measurement {
                gpu: gpu.unwrap_or_default(),
                ..std::mem::take(&mut minute).measurement(elapsed, overhead)
            };
            let (number, rate) = (measurements.len() + 1, measurement.decode_rate);
            progress.line(format!("minute {number}: {rate:.1} tokens/s"))?;
            measurements.push(measurement);
            (since, kernels) = (Instant::now(), now);
        }
        if over {
            return Ok(measurements);
        }
        progress.stage(|| format!("{} s of {} s", begun.elapsed().as_secs(), time.as_secs()))?;
    }
}

impl Minute {
    fn measurement(mut self, elapsed: Duration, overhead: Option<f64>) -> Measurement {
        Measurement {
            prompt_tokens: self.prompt_tokens,
            output_tokens: self.output_tokens,
            ttft: median(&mut self.ttfts),
            // There is no decode-only step if every step also computed a prompt.
            step: median(&mut self.steps).unwrap_or(elapsed),
            decode_rate: self.output_tokens as f64 / elapsed.as_secs_f64(),
            // Prompts are spread over the minute, so there is no prefill phase to measure.
            prefill_rate: None,
            overhead,
            ..Measurement::default()
        }
    }
}

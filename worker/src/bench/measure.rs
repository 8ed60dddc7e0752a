//! Measures one job in this process.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use stoker_engine::{
    footprint::Footprint, model::Quantization, naive::NaiveDecoder, speculation::NotADepth,
    weights::ModelConfig,
};
use stoker_ops::{Device, cpu};

use super::{
    beside,
    child::Tell,
    drive::{self, Pace, median},
    error::Error,
    job::{Job, Work},
    memory,
    row::{Measured, Row},
    shared_prefix, soak, speculate,
};
use crate::{
    ModelSource,
    config::{DeviceConfig, Drafter, SpeculationConfig},
    gpu::Meter,
    loading::{self, LoadError},
};

/// Steps of plain operations: they are slow, and one is like the other.
const NAIVE_STEPS: usize = 16;
/// No more of them once this is over, but for the first three.
const NAIVE_TIME: Duration = Duration::from_secs(20);

/// What a job came to, but for memory.
struct Ran {
    load: Duration,
    config: ModelConfig,
    /// One for each row.
    paces: Vec<Pace>,
}

/// Does a job: its rows, in order.
pub(super) fn measure(job: &Job, tell: &mut Tell) -> Result<Vec<Measured>, Error> {
    let quantization: Quantization = job.quantize.parse().map_err(Error::Usage)?;
    let device = loading::device(&device(job)?).map_err(LoadError::from)?;
    tell.stage(|| "reading memory".into())?;
    let before = device.memory_rate().map_err(Error::Failed)?;
    memory::forget_peak();
    let ran = run(job, &device, quantization, tell)?;
    let peak = memory::peak();
    tell.stage(|| "reading memory".into())?;
    let rates = [before, device.memory_rate().map_err(Error::Failed)?];
    let rate = (rates[0] + rates[1]) / 2.0;

    let Footprint { step_weight_bytes, kv_token_bytes, .. } =
        Footprint::of(&ran.config, quantization);
    let step_bytes = step_weight_bytes + kv_token_bytes * (job.context * job.batch) as u64;
    let row = |(i, pace): (usize, &Pace)| Row {
        model: job.model.clone(),
        scenario: job.row(i).0.to_owned(),
        format: job.format.to_string(),
        quantize: job.quantize.clone(),
        device: device.class.clone(),
        threads: cpu::threads() as u64,
        batch: job.batch as u64,
        context: job.context as u64,
        run: job.row(i).1,
        load_seconds: ran.load.as_secs_f64(),
        prompt_tokens: pace.prompt_tokens as u64,
        cached_prompt_tokens: pace.cached_prompt_tokens,
        output_tokens: pace.output_tokens as u64,
        ttft_seconds: pace.first_token.map(|time| time.as_secs_f64()),
        tpot_seconds: pace.step.as_secs_f64(),
        decode_tokens_per_second: pace.decode_rate,
        prefill_tokens_per_second: pace.prefill_rate,
        peak_rss_bytes: peak,
        read_rate_bytes_per_second: rate,
        bandwidth_utilization: step_bytes as f64 / pace.model_step().as_secs_f64() / rate,
        launches_per_step: pace.launches,
        gpu_utilization: pace.gpu.utilization,
        gpu_memory_used_bytes: pace.gpu.memory_used,
        gpu_power_watts: pace.gpu.power,
        gpu_temperature_celsius: pace.gpu.temperature,
        gpu_clock_hertz: pace.gpu.clock,
        gpu_memory_clock_hertz: pace.gpu.memory_clock,
        long_prompt_tokens: pace.beside.map(|beside| beside.prompt as u64),
        long_prompt_ttft_seconds: pace.beside.map(|beside| beside.first_token.as_secs_f64()),
        inter_token_p50_seconds: pace.beside.map(|beside| beside.alone[0].as_secs_f64()),
        inter_token_p99_seconds: pace.beside.map(|beside| beside.alone[1].as_secs_f64()),
        itl_under_prefill_p50_seconds: pace.beside.map(|b| b.disturbed[0].as_secs_f64()),
        itl_under_prefill_p99_seconds: pace.beside.map(|b| b.disturbed[1].as_secs_f64()),
        itl_under_prefill_p99_ratio: pace.beside.map(|beside| beside.ratio()),
        drafted_tokens: pace.gain.map(|gain| gain.drafted),
        accepted_tokens: pace.gain.map(|gain| gain.accepted),
        mean_accepted_length: pace.gain.map(|gain| gain.mean_accepted_length()),
        speedup_over_plain: pace.gain.map(|gain| gain.speedup),
    };
    let rows = ran.paces.iter().enumerate().map(row);
    let measured = rows.zip(&ran.paces).map(|(row, pace)| Measured {
        row,
        read_rates: rates,
        outside: pace.outside,
        gpu: pace.gpu,
    });
    Ok(measured.collect())
}

/// Where the job is to be done.
fn device(job: &Job) -> Result<DeviceConfig, Error> {
    let parts = job.disable_gpu_feature.iter().map(|part| part.parse());
    Ok(DeviceConfig {
        device: job.device.parse().map_err(Error::Usage)?,
        disable_gpu_feature: parts.collect::<Result<_, _>>().map_err(Error::Usage)?,
    })
}

fn run(
    job: &Job,
    device: &Device,
    quantization: Quantization,
    tell: &mut Tell,
) -> Result<Ran, Error> {
    let Ok(source) = job.source.parse::<ModelSource>();
    let begun = Instant::now();
    tell.stage(|| "loading".into())?;
    if job.work == Work::Naive {
        let config = loading::open(&source)?.config().clone();
        let (load, pace) = naive(&config, job.context, device, tell)?;
        return Ok(Ran { load, config, paces: vec![pace] });
    }
    let files = loading::open(&source)?;
    let model = loading::read(&files, &source.name(), quantization, device)?;
    let load = begun.elapsed();
    let config = model.config.clone();
    let paces = match &job.work {
        Work::Soak { prompt, output, seconds } => {
            let time = Duration::from_secs_f64(*seconds);
            soak::run(model, job.batch, (*prompt, *output), time, tell)?
        }
        Work::Speculate { tokens, temperature, drafter, draft, depth } => {
            let config = SpeculationConfig {
                speculate: Drafter::from_str(drafter, true).map_err(Error::Usage)?,
                draft_model: draft.as_deref().map(|draft| match draft.parse() {
                    Ok(draft) => draft,
                }),
                num_speculative_tokens: depth
                    .parse()
                    .map_err(|error: NotADepth| Error::Usage(error.to_string()))?,
            };
            let mut model = model;
            if config.speculate == Drafter::Draft {
                let draft = config.draft_model.clone().unwrap_or(ModelSource::BundledDraft);
                loading::add_draft(&mut model, &draft, device)?;
            }
            vec![speculate::run(&model, &config, job.batch, *tokens, *temperature, tell)?]
        }
        Work::Beside { prompts, prompt, slowdown } => {
            vec![beside::run(model, prompts, *prompt, *slowdown, tell)?]
        }
        Work::Decode { prompts, tokens } => vec![drive::decode(model, prompts, *tokens, tell)?],
        Work::SharedPrefix { tokens } => shared_prefix::run(model, *tokens, tell)?,
        Work::Naive => Vec::new(),
    };
    Ok(Ran { load, config, paces })
}

/// Steps of a decoder of plain operations: what making it took, and its pace.
pub(super) fn naive(
    config: &ModelConfig,
    context: usize,
    device: &Device,
    tell: &mut Tell,
) -> Result<(Duration, Pace), Error> {
    let begun = Instant::now();
    let mut decoder = NaiveDecoder::random(config, context, &device.tensors);
    let load = begun.elapsed();
    let meter = Meter::begin(device);
    let (begun, mut steps) = (Instant::now(), Vec::new());
    while steps.len() < 3 || (steps.len() < NAIVE_STEPS && begun.elapsed() < NAIVE_TIME) {
        tell.stage(|| format!("decoding, {}/{NAIVE_STEPS} tokens", steps.len()))?;
        let begun = Instant::now();
        decoder.step();
        steps.push(begun.elapsed());
    }
    let step = median(&mut steps).unwrap_or_default();
    let pace = Pace {
        output_tokens: steps.len(),
        step,
        decode_rate: 1.0 / step.as_secs_f64(),
        gpu: meter.end(),
        ..Pace::default()
    };
    Ok((load, pace))
}

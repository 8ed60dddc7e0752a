//! Measures one job in this process.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use stoker_engine::{
    footprint::Footprint, model::Quantization, naive::NaiveDecoder, speculation::ParseDepthError,
    weights::ModelConfig,
};
use stoker_ops::{Device, cpu};

use super::{
    child::Progress,
    error::Error,
    harness::{self, Measurement, median},
    job::{Job, Work},
    memory, prefill_interference,
    row::{BenchRow, TableRow},
    shared_prefix, soak, speculate,
};
use crate::{
    ModelSource,
    config::{DeviceConfig, Drafter, SpeculationConfig},
    gpu::Meter,
    loading::{self, LoadError},
};

/// Steps of the naive decoder. They are slow and vary little.
const NAIVE_STEPS: usize = 16;
/// Time limit of the naive decoder, which runs at least three steps.
const NAIVE_TIME: Duration = Duration::from_secs(20);

/// Results of a job, without memory figures.
struct JobOutput {
    load: Duration,
    config: ModelConfig,
    /// One measurement per row.
    measurements: Vec<Measurement>,
}

/// Runs a job and returns its rows in order.
pub(super) fn measure(job: &Job, progress: &mut Progress) -> Result<Vec<TableRow>, Error> {
    let quantization: Quantization = job.quantize.parse().map_err(Error::Usage)?;
    let device = loading::device(&device(job)?).map_err(LoadError::from)?;
    progress.stage(|| "reading memory".into())?;
    let before = device.memory_bandwidth().map_err(Error::Failed)?;
    memory::reset_peak();
    let output = run(job, &device, quantization, progress)?;
    let peak = memory::peak();
    progress.stage(|| "reading memory".into())?;
    let rates = [before, device.memory_bandwidth().map_err(Error::Failed)?];
    let rate = (rates[0] + rates[1]) / 2.0;

    let Footprint { step_weight_bytes, kv_token_bytes, .. } =
        Footprint::of(&output.config, quantization);
    let step_bytes = step_weight_bytes + kv_token_bytes * (job.context * job.batch) as u64;
    let row = |(i, measurement): (usize, &Measurement)| BenchRow {
        model: job.model.clone(),
        scenario: job.row(i).0.to_owned(),
        format: job.format.to_string(),
        quantize: job.quantize.clone(),
        device: device.class.clone(),
        threads: cpu::threads() as u64,
        batch: job.batch as u64,
        context: job.context as u64,
        run: job.row(i).1,
        load_seconds: output.load.as_secs_f64(),
        prompt_tokens: measurement.prompt_tokens as u64,
        cached_prompt_tokens: measurement.cached_prompt_tokens,
        output_tokens: measurement.output_tokens as u64,
        ttft_seconds: measurement.ttft.map(|time| time.as_secs_f64()),
        tpot_seconds: measurement.step.as_secs_f64(),
        decode_tokens_per_second: measurement.decode_rate,
        prefill_tokens_per_second: measurement.prefill_rate,
        peak_rss_bytes: peak,
        read_rate_bytes_per_second: rate,
        bandwidth_utilization: step_bytes as f64 / measurement.model_step().as_secs_f64() / rate,
        launches_per_step: measurement.launches,
        gpu_utilization: measurement.gpu.utilization,
        gpu_memory_used_bytes: measurement.gpu.memory_used,
        gpu_power_watts: measurement.gpu.power,
        gpu_temperature_celsius: measurement.gpu.temperature,
        gpu_clock_hertz: measurement.gpu.clock,
        gpu_memory_clock_hertz: measurement.gpu.memory_clock,
        long_prompt_tokens: measurement.prefill_interference.map(|i| i.prompt as u64),
        long_prompt_ttft_seconds: measurement.prefill_interference.map(|i| i.ttft.as_secs_f64()),
        inter_token_p50_seconds: measurement
            .prefill_interference
            .map(|i| i.baseline[0].as_secs_f64()),
        inter_token_p99_seconds: measurement
            .prefill_interference
            .map(|i| i.baseline[1].as_secs_f64()),
        itl_under_prefill_p50_seconds: measurement
            .prefill_interference
            .map(|i| i.under_prefill[0].as_secs_f64()),
        itl_under_prefill_p99_seconds: measurement
            .prefill_interference
            .map(|i| i.under_prefill[1].as_secs_f64()),
        itl_under_prefill_p99_ratio: measurement.prefill_interference.map(|i| i.ratio()),
        drafted_tokens: measurement.gain.map(|gain| gain.drafted),
        accepted_tokens: measurement.gain.map(|gain| gain.accepted),
        mean_accepted_length: measurement.gain.map(|gain| gain.mean_accepted_length()),
        speedup_over_plain: measurement.gain.map(|gain| gain.speedup),
    };
    let rows = output.measurements.iter().enumerate().map(row);
    let table_rows = rows.zip(&output.measurements).map(|(row, measurement)| TableRow {
        row,
        read_rates: rates,
        overhead: measurement.overhead,
        gpu: measurement.gpu,
    });
    Ok(table_rows.collect())
}

/// Returns the device to run the job on.
fn device(job: &Job) -> Result<DeviceConfig, Error> {
    let features = job.disable_gpu_feature.iter().map(|feature| feature.parse());
    Ok(DeviceConfig {
        device: job.device.parse().map_err(Error::Usage)?,
        disable_gpu_feature: features.collect::<Result<_, _>>().map_err(Error::Usage)?,
    })
}

fn run(
    job: &Job,
    device: &Device,
    quantization: Quantization,
    progress: &mut Progress,
) -> Result<JobOutput, Error> {
    let Ok(source) = job.source.parse::<ModelSource>();
    let begun = Instant::now();
    progress.stage(|| "loading".into())?;
    if job.work == Work::Naive {
        let config = loading::open(&source)?.config().clone();
        let (load, measurement) = naive(&config, job.context, device, progress)?;
        return Ok(JobOutput { load, config, measurements: vec![measurement] });
    }
    let files = loading::open(&source)?;
    let model = loading::read(&files, &source.name(), quantization, device)?;
    let load = begun.elapsed();
    let config = model.config.clone();
    let measurements = match &job.work {
        Work::Soak { prompt, output, seconds } => {
            let time = Duration::from_secs_f64(*seconds);
            soak::run(model, job.batch, (*prompt, *output), time, progress)?
        }
        Work::Speculate { tokens, temperature, drafter, draft, depth } => {
            let config = SpeculationConfig {
                speculate: Drafter::from_str(drafter, true).map_err(Error::Usage)?,
                draft_model: draft.as_deref().map(|draft| match draft.parse() {
                    Ok(draft) => draft,
                }),
                num_speculative_tokens: depth
                    .parse()
                    .map_err(|error: ParseDepthError| Error::Usage(error.to_string()))?,
            };
            let mut model = model;
            if config.speculate == Drafter::Draft {
                let draft = config.draft_model.clone().unwrap_or(ModelSource::BundledDraft);
                loading::add_draft(&mut model, &draft, device)?;
            }
            vec![speculate::run(&model, &config, job.batch, *tokens, *temperature, progress)?]
        }
        Work::PrefillInterference { prompts, prompt, slowdown } => {
            vec![prefill_interference::run(model, prompts, *prompt, *slowdown, progress)?]
        }
        Work::Decode { prompts, tokens } => {
            vec![harness::decode(model, prompts, *tokens, progress)?]
        }
        Work::SharedPrefix { tokens } => shared_prefix::run(model, *tokens, progress)?,
        Work::Naive => Vec::new(),
    };
    Ok(JobOutput { load, config, measurements })
}

/// Measures the naive decoder, which uses unfused operations. Returns the time to create it and the
/// measurement.
pub(super) fn naive(
    config: &ModelConfig,
    context: usize,
    device: &Device,
    progress: &mut Progress,
) -> Result<(Duration, Measurement), Error> {
    let begun = Instant::now();
    let mut decoder = NaiveDecoder::random(config, context, &device.tensors);
    let load = begun.elapsed();
    let meter = Meter::begin(device);
    let (begun, mut steps) = (Instant::now(), Vec::new());
    while steps.len() < 3 || (steps.len() < NAIVE_STEPS && begun.elapsed() < NAIVE_TIME) {
        progress.stage(|| format!("decoding, {}/{NAIVE_STEPS} tokens", steps.len()))?;
        let begun = Instant::now();
        decoder.step();
        steps.push(begun.elapsed());
    }
    let step = median(&mut steps).unwrap_or_default();
    let measurement = Measurement {
        output_tokens: steps.len(),
        step,
        decode_rate: 1.0 / step.as_secs_f64(),
        gpu: meter.end(),
        ..Measurement::default()
    };
    Ok((load, measurement))
}

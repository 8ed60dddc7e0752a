//! Measures one job in this process.

use serde_json::Value;
use stoker_engine::{footprint::Footprint, model::Quantization};
use stoker_loader::{LoadError, ModelSource, config::DeviceConfig};
use stoker_ops::cpu;

use super::{
    job::Job,
    report::{BenchRow, TableRow},
};
use crate::{
    Error,
    harness::{self, Machine, Measurement, Progress},
    workloads::Workloads,
};

/// Runs a job and returns its rows in order.
pub(super) fn measure(job: &Job, mut progress: Progress) -> Result<Vec<TableRow>, Error> {
    let workloads: Workloads = stoker_shared::config::defaults();
    let workload = workloads.named(&job.case.workload).ok_or_else(|| {
        Error::Usage(format!("standard input names the unknown workload {:?}", job.case.workload))
    })?;
    let quantization: Quantization = job.case.quantize.parse().map_err(Error::Usage)?;
    let device = stoker_loader::device(&device(job)?).map_err(LoadError::from)?;
    progress.stage(|| "reading memory".into())?;
    let before = device.memory_bandwidth().map_err(Error::Failed)?;
    harness::reset_peak_memory();
    let Ok(source) = job.case.source.parse::<ModelSource>();
    let mut machine = Machine::open(source, quantization, device, progress)?;
    let measurements = workload.measure(&job.case, &mut machine)?;
    let peak = harness::peak_memory();
    machine.progress.stage(|| "reading memory".into())?;
    let after = machine.device.memory_bandwidth().map_err(Error::Failed)?;
    let keys = workloads.keys();
    let keys: Vec<_> = keys.iter().map(|key| key.name).collect();
    let resources = Resources { quantization, peak, read_rates: [before, after] };
    let mut rows: Vec<TableRow> = Vec::with_capacity(measurements.len());
    for measurement in measurements {
        let scenario = measurement.scenario.unwrap_or(&job.case.scenario).to_owned();
        let earlier = rows.iter().filter(|other| other.row.scenario == scenario).count();
        let run = job.run + earlier as u64;
        rows.push(row(job, scenario, run, measurement, &machine, &resources, &keys));
    }
    Ok(rows)
}

/// What the process of a job measured besides the workload.
struct Resources {
    quantization: Quantization,
    /// Peak resident memory, in bytes.
    peak: Option<u64>,
    /// Memory read rate in bytes per second, before the model was loaded and after the last step.
    read_rates: [f64; 2],
}

fn row(
    job: &Job,
    scenario: String,
    run: u64,
    measurement: Measurement,
    machine: &Machine,
    resources: &Resources,
    keys: &[&str],
) -> TableRow {
    let case = &job.case;
    let Footprint { step_weight_bytes, kv_token_bytes, .. } =
        Footprint::of(machine.config(), resources.quantization);
    let step_bytes = step_weight_bytes + kv_token_bytes * (case.context * case.batch) as u64;
    let [before, after] = resources.read_rates;
    let rate = (before + after) / 2.0;
    let model_step = measurement.model_step().as_secs_f64();
    let mut details = measurement.details;
    for key in keys {
        details.entry(*key).or_insert(Value::Null);
    }
    let row = BenchRow {
        model: case.model.clone(),
        scenario,
        format: case.format.to_string(),
        quantize: case.quantize.clone(),
        device: machine.device.class.clone(),
        threads: cpu::threads() as u64,
        batch: case.batch as u64,
        context: case.context as u64,
        run,
        load_seconds: machine.load_time().as_secs_f64(),
        prompt_tokens: measurement.prompt_tokens as u64,
        cached_prompt_tokens: measurement.cached_prompt_tokens,
        output_tokens: measurement.output_tokens as u64,
        ttft_seconds: measurement.ttft.map(|time| time.as_secs_f64()),
        tpot_seconds: measurement.step.as_secs_f64(),
        decode_tokens_per_second: measurement.decode_rate,
        prefill_tokens_per_second: measurement.prefill_rate,
        peak_rss_bytes: resources.peak,
        read_rate_bytes_per_second: rate,
        bandwidth_utilization: step_bytes as f64 / model_step / rate,
        launches_per_step: measurement.launches,
        gpu_utilization: measurement.gpu.utilization,
        gpu_memory_used_bytes: measurement.gpu.memory_used,
        gpu_power_watts: measurement.gpu.power,
        gpu_temperature_celsius: measurement.gpu.temperature,
        gpu_clock_hertz: measurement.gpu.clock,
        gpu_memory_clock_hertz: measurement.gpu.memory_clock,
        details,
    };
    TableRow {
        row,
        read_rates: resources.read_rates,
        overhead: measurement.overhead,
        gpu: measurement.gpu,
        baseline_speedup: measurement.baseline_speedup,
        summary: measurement.summary,
    }
}

/// Returns the device to run the job on.
fn device(job: &Job) -> Result<DeviceConfig, Error> {
    let features = job.disable_gpu_feature.iter().map(|feature| feature.parse());
    Ok(DeviceConfig {
        device: job.device.parse().map_err(Error::Usage)?,
        disable_gpu_feature: features.collect::<Result<_, _>>().map_err(Error::Usage)?,
    })
}

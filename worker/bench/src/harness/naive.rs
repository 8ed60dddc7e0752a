//! A decoder of unfused operations in f32, with random weights.

use std::time::{Duration, Instant};

use stoker_engine::{naive::NaiveDecoder, weights::ModelConfig};
use stoker_ops::Device;

use super::{Measurement, Meter, Progress, time::median};
use crate::Error;

/// Most steps. They are slow and vary little.
const STEPS: usize = 16;
/// Time limit, but at least three steps run.
const TIME: Duration = Duration::from_secs(20);

/// Measures the naive decoder, which uses unfused operations. Returns the time to create it and the
/// measurement.
pub(crate) fn naive(
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
    while steps.len() < 3 || (steps.len() < STEPS && begun.elapsed() < TIME) {
        progress.stage(|| format!("decoding, {}/{STEPS} tokens", steps.len()))?;
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

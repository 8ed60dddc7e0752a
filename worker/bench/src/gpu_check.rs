//! `stoker-worker gpu-check`: correctness and speed of a GPU in one run.
//!
//! Correctness comes first: `facts` describes the device, operations are compared with the
//! reference, and `exactness` compares the engine's output for the same requests under different
//! configurations. Then `speed` measures the engine, and `transformers` measures the same shape
//! with Hugging Face Transformers. `report` writes the results.

mod cli;
mod exactness;
mod facts;
mod report;
mod speed;
mod transformers;

use std::time::Instant;

pub use cli::GpuCheckArgs;
use exactness::ReferenceOutput;
use facts::Facts;
use report::{GpuCheckReport, Operation};
use speed::Speed;
use stoker_engine::{Model, model::Quantization, weights::ModelFiles};
use stoker_loader::{BUNDLED, LoadError};
use stoker_ops::{check, device::DeviceChoice, fallback::GpuFeature};

use crate::{
    Error, json_file,
    models::{
        Format,
        random::{self, cache},
    },
};

/// Measured batch sizes.
const BATCHES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Batch sizes whose steps are also timed kernel by kernel.
const PROFILED_BATCHES: [usize; 3] = [1, 8, 64];

/// Runs the command. Fails if a check fails.
pub fn run(args: &GpuCheckArgs) -> Result<(), Error> {
    let report = check(args)?;
    json_file::print(&report.markdown())?;
    match report.failures() {
        0 => Ok(()),
        failures => Err(Error::Failed(format!("{failures} checks failed; see the report"))),
    }
}

/// Prints the current stage on standard error.
struct StageLog {
    begun: Instant,
}

impl StageLog {
    fn begin(&self, stage: &str) {
        eprintln!("{:6.1} s  {stage}", self.begun.elapsed().as_secs_f64());
    }
}

fn check(args: &GpuCheckArgs) -> Result<GpuCheckReport, Error> {
    report::make_folder(&args.out)?;
    let stage_log = StageLog { begun: Instant::now() };
    stage_log.begin("opening the device");
    let device = stoker_loader::device(&args.device).map_err(LoadError::from)?;
    stage_log.begin("copying memory");
    let facts = Facts::of(&device)?;
    let copy_rate = facts.copy_bytes_per_second;
    let mut report = GpuCheckReport::new(args.random_weights.name(), facts);
    // Writes the report after each stage, so that a crash does not lose earlier results.
    let write_report = |report: &mut GpuCheckReport| {
        report.seconds = stage_log.begun.elapsed().as_secs_f64();
        report.write(&args.out)
    };
    stage_log.begin("operations against the reference");
    report.operations = check::all(&device.tensors).into_iter().map(Operation::from).collect();
    write_report(&mut report)?;

    stage_log.begin("the bundled model: the same requests under different configurations");
    let stories = ModelFiles::embedded(BUNDLED, storyteller::model())?;
    let mut models = Vec::new();
    for kind in Quantization::ALL {
        models.push(stoker_loader::read(&stories, BUNDLED, kind, &device)?);
    }
    let references: Vec<_> = models.iter().map(ReferenceOutput::of).collect::<Result<_, _>>()?;
    report.exactness =
        references.iter().flat_map(|reference| reference.comparisons.clone()).collect();
    write_report(&mut report)?;

    stage_log.begin("random weights");
    let folder = args.cache.clone().map_or_else(cache::default_folder, Ok)?;
    let path = random::prepare(args.random_weights, Format::Gguf, &folder)?;
    let files = ModelFiles::open(&path)?;
    let read = |kind| stoker_loader::read(&files, args.random_weights.name(), kind, &device);
    let speed = Speed::new(&device, copy_rate, args.context as usize);
    stage_log.begin("one sequence in f32");
    report.speed.push(speed.naive(files.config())?);
    report.speed.push(speed.decode("fused f32", &read(Quantization::None)?, 1)?);
    let model = read(Quantization::Int8)?;
    for batch in BATCHES {
        stage_log.begin(&format!("{batch} in int8"));
        report.speed.push(speed.decode("int8", &model, batch)?);
    }
    stage_log.begin("a long prompt");
    report.speed.push(speed.prompt("int8", &model)?);
    write_report(&mut report)?;

    stage_log.begin("without graphs");
    GpuFeature::Graphs.turn_off();
    report.exactness.extend(compare_again(&references, &models, "launched kernel by kernel")?);
    for batch in PROFILED_BATCHES {
        report.speed.push(speed.decode("int8, launched", &model, batch)?);
        report.timeline.push(speed.timeline(&model, batch)?);
    }
    write_report(&mut report)?;
    stage_log.begin("without tensor cores");
    GpuFeature::TensorCores.turn_off();
    report.exactness.extend(compare_again(&references, &models, "without tensor cores")?);
    let what = "int8, launched, no tensor cores";
    report.speed.push(speed.decode(what, &model, PROFILED_BATCHES[2])?);
    report.speed.push(speed.prompt(what, &model)?);
    write_report(&mut report)?;

    stage_log.begin("transformers, if installed");
    let number = match args.device.device {
        DeviceChoice::Cuda(number) => number,
        _ => 0,
    };
    let context = args.context as usize;
    report.transformers =
        transformers::run(files.config(), context, &PROFILED_BATCHES, &device, number);
    write_report(&mut report)?;
    Ok(report)
}

/// Runs the requests again after a GPU feature was turned off and compares the output.
fn compare_again(
    references: &[ReferenceOutput],
    models: &[Model],
    what: &str,
) -> Result<Vec<exactness::Comparison>, Error> {
    references.iter().zip(models).map(|(reference, model)| reference.compare(model, what)).collect()
}

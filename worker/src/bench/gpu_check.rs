//! `stoker-worker gpu-check`: all that is to be known of a GPU, in one run of one program.
//!
//! What is right comes first: `facts` says what it is, operations are compared with the reference, and `exactness` has
//! the engine answer the same requests in different ways. Then `speed` measures, and `transformers` measures the same
//! shape with what others would use. `report` writes it down.

mod cli;
mod exactness;
mod facts;
mod report;
mod speed;
mod transformers;

use std::time::Instant;

pub use cli::GpuCheckArgs;
use exactness::Answers;
use facts::Facts;
use report::{Operation, Report};
use speed::Speed;
use stoker_engine::{Model, model::Quantization, weights::ModelFiles};
use stoker_ops::{check, device::Choice, fallback::GpuFeature};

use super::{
    Error,
    cli::Format,
    random::{self, cache},
};
use crate::loading::{self, LoadError};

/// Sequences that decode together.
const BATCHES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Of these the steps are looked at more closely.
const CLOSER: [usize; 3] = [1, 8, 64];

/// Runs the command. An error comes with its exit code: 1 if something is wrong with the GPU, 2 for bad usage.
pub fn run(args: &GpuCheckArgs) -> Result<(), (u8, String)> {
    let report = check(args).map_err(Error::for_shell)?;
    print!("{}", report.markdown());
    match report.faults() {
        0 => Ok(()),
        faults => Err((1, format!("{faults} checks failed; see the report"))),
    }
}

/// Says on standard error what is being done.
struct Stages {
    begun: Instant,
}

impl Stages {
    fn begin(&self, stage: &str) {
        eprintln!("{:6.1} s  {stage}", self.begun.elapsed().as_secs_f64());
    }
}

fn check(args: &GpuCheckArgs) -> Result<Report, Error> {
    report::make_folder(&args.out)?;
    let stages = Stages { begun: Instant::now() };
    stages.begin("opening the device");
    let device = loading::device(&args.device).map_err(LoadError::from)?;
    stages.begin("copying memory");
    let facts = Facts::of(&device)?;
    let copy_rate = facts.copy_bytes_per_second;
    let mut report = Report::new(args.random_weights.name(), facts);
    // Whatever happens next, what was found so far is on disk.
    let written = |report: &mut Report| {
        report.seconds = stages.begun.elapsed().as_secs_f64();
        report.write(&args.out)
    };
    stages.begin("operations against the reference");
    report.operations = check::all(&device.tensors).into_iter().map(Operation::from).collect();
    written(&mut report)?;

    stages.begin("the bundled model: the same requests in different ways");
    let stories = ModelFiles::embedded(loading::BUNDLED, storyteller::model())?;
    let mut models = Vec::new();
    for kind in Quantization::ALL {
        models.push(loading::read(&stories, loading::BUNDLED, kind, &device)?);
    }
    let answers: Vec<_> = models.iter().map(Answers::of).collect::<Result<_, _>>()?;
    report.exactness = answers.iter().flat_map(|answers| answers.pairs.clone()).collect();
    written(&mut report)?;

    stages.begin("random weights");
    let folder = args.cache.clone().map_or_else(cache::default_folder, Ok)?;
    let path = random::prepare(args.random_weights, Format::Gguf, &folder)?;
    let files = ModelFiles::open(&path)?;
    let read = |kind| loading::read(&files, args.random_weights.name(), kind, &device);
    let speed = Speed::new(&device, copy_rate, args.context as usize);
    stages.begin("one sequence in f32");
    report.speed.push(speed.naive(files.config())?);
    report.speed.push(speed.decode("fused f32", &read(Quantization::None)?, 1)?);
    let model = read(Quantization::Int8)?;
    for batch in BATCHES {
        stages.begin(&format!("{batch} in int8"));
        report.speed.push(speed.decode("int8", &model, batch)?);
    }
    stages.begin("a long prompt");
    report.speed.push(speed.prompt("int8", &model)?);
    written(&mut report)?;

    stages.begin("without graphs");
    GpuFeature::Graphs.turn_off();
    report.exactness.extend(again(&answers, &models, "launched kernel by kernel")?);
    for batch in CLOSER {
        report.speed.push(speed.decode("int8, launched", &model, batch)?);
        report.timeline.push(speed.timeline(&model, batch)?);
    }
    written(&mut report)?;
    stages.begin("without tensor cores");
    GpuFeature::TensorCores.turn_off();
    report.exactness.extend(again(&answers, &models, "without tensor cores")?);
    let what = "int8, launched, no tensor cores";
    report.speed.push(speed.decode(what, &model, CLOSER[2])?);
    report.speed.push(speed.prompt(what, &model)?);
    written(&mut report)?;

    stages.begin("transformers, where they are installed");
    let number = match args.device.device {
        Choice::Cuda(number) => number,
        _ => 0,
    };
    let context = args.context as usize;
    report.transformers = transformers::run(files.config(), context, &CLOSER, &device, number);
    written(&mut report)?;
    Ok(report)
}

/// The same answers once more, after something was turned off.
fn again(answers: &[Answers], models: &[Model], what: &str) -> Result<Vec<exactness::Pair>, Error> {
    answers.iter().zip(models).map(|(answers, model)| answers.again(model, what)).collect()
}

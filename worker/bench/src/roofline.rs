//! `stoker-worker roofline`: upper bounds on the tokens per second of a machine, and whether memory
//! or compute limits it.
//!
//! `hardware` has the rates of machines, `ceiling` computes the bounds for a model, `last` reads
//! benchmark results, and `report` formats both.

mod ceiling;
mod cli;
mod hardware;
mod last;
mod report;

use stoker_engine::{shapes, weights::ModelConfig};

pub use ceiling::{Bound, Ceiling, WeightFormat};
pub use cli::RooflineArgs;
pub use hardware::{Hardware, MeasuredProducts};
pub use last::MeasuredCase;
pub use report::RooflineReport;

use crate::{Error, json_file};

/// Batch sizes.
const BATCHES: [u64; 3] = [1, 8, 64];

/// Runs the command.
pub fn run(args: RooflineArgs) -> Result<(), Error> {
    json_file::claim(args.json.as_deref())?;
    let report = compute(&args)?;
    json_file::print(&report.to_string())?;
    json_file::write(args.json.as_deref(), &report)
}

/// Computes the report.
pub fn compute(args: &RooflineArgs) -> Result<RooflineReport, Error> {
    let (name, model) = model(args)?;
    let context = context(args, &model)?;
    // Read first, so that an invalid file is reported before anything is measured.
    let cases = args.last.as_deref().map(|path| last::read(path, &name)).transpose()?;
    let hardware = Hardware::of(args.hardware);
    // On GPUs, 4 bits are stored as 8.
    let formats =
        WeightFormat::ALL.iter().filter(|kind| hardware.measured || **kind != WeightFormat::Int4);
    let ceilings = formats.flat_map(|kind| {
        BATCHES.map(|batch| Ceiling::of(&hardware, &model, *kind, batch, context))
    });
    let ceilings = ceilings.collect();
    let last =
        cases.map(|cases| cases.into_iter().map(|case| case.compare(&hardware, &model)).collect());
    Ok(RooflineReport { model: name, context, hardware, ceilings, last })
}

/// Returns the model's name and shape.
fn model(args: &RooflineArgs) -> Result<(String, ModelConfig), Error> {
    match &args.model {
        Some(source) => Ok((source.name(), stoker_loader::open(source)?.config().clone())),
        None => match shapes::named(&args.shape) {
            Some(config) => Ok((args.shape.clone(), config)),
            // The command line accepts only known names.
            None => Err(Error::Usage(format!(
                "--shape {} is not one of {}",
                args.shape,
                shapes::NAMES.join(", ")
            ))),
        },
    }
}

/// Returns the context length of every sequence.
fn context(args: &RooflineArgs, model: &ModelConfig) -> Result<u64, Error> {
    let limit = model.context_length as u64;
    match args.context {
        None => Ok(limit.min(512)),
        Some(context) if (1..=limit).contains(&context) => Ok(context),
        Some(context) => Err(Error::Usage(format!(
            "--context {context} is not from 1 to {limit}, the model's context"
        ))),
    }
}

//! `stoker-worker roofline`: the most tokens a second that a machine could give, and what keeps it from more.
//!
//! `hardware` says what a machine can do, `ceiling` what a step of a model takes of it, `last` reads what
//! was measured, and `report` puts them side by side.

mod ceiling;
mod cli;
mod hardware;
mod last;
mod report;

use stoker_engine::{shapes, weights::ModelConfig};

pub use ceiling::{Bound, Ceiling, Kind};
pub use cli::RooflineArgs;
pub use hardware::Hardware;
pub use last::Standing;
pub use report::Report;

use crate::{
    failure::{self, Failure},
    loading,
};

/// Sequences that decode together.
const BATCHES: [u64; 3] = [1, 8, 64];

/// Runs the command. An error comes with its exit code: 1 for a failure, 2 for bad usage.
pub fn run(args: RooflineArgs) -> Result<(), (u8, String)> {
    let outcome = || {
        failure::claim_json(args.json.as_deref())?;
        let report = reckon(&args)?;
        failure::print(&report.to_string())?;
        failure::write_json(args.json.as_deref(), &report)
    };
    outcome().map_err(Failure::for_shell)
}

/// Reckons what `args` ask for.
pub fn reckon(args: &RooflineArgs) -> Result<Report, Failure> {
    let (name, model) = model(args)?;
    let context = context(args, &model)?;
    // Read before anything is measured: a file that is wrong is known at once.
    let runs = args.last.as_deref().map(|path| last::read(path, &name)).transpose()?;
    let hardware = Hardware::of(args.hardware);
    let ceilings = Kind::ALL.iter().flat_map(|kind| {
        BATCHES.map(|batch| Ceiling::of(&hardware, &model, *kind, batch, context))
    });
    let ceilings = ceilings.collect();
    let last =
        runs.map(|runs| runs.into_iter().map(|run| run.against(&hardware, &model)).collect());
    Ok(Report { model: name, context, hardware, ceilings, last })
}

/// The model's name and shape.
fn model(args: &RooflineArgs) -> Result<(String, ModelConfig), Failure> {
    match &args.model {
        Some(source) => Ok((source.name(), loading::open(source)?.config().clone())),
        None => match shapes::named(&args.shape) {
            Some(config) => Ok((args.shape.clone(), config)),
            // The command line lets none but the known names pass.
            None => Err(Failure::Usage(format!(
                "--shape {} is none of {}",
                args.shape,
                shapes::NAMES.join(", ")
            ))),
        },
    }
}

/// Positions that every sequence holds.
fn context(args: &RooflineArgs, model: &ModelConfig) -> Result<u64, Failure> {
    let most = model.context_length as u64;
    match args.context {
        None => Ok(most.min(512)),
        Some(context) if (1..=most).contains(&context) => Ok(context),
        Some(context) => Err(Failure::Usage(format!(
            "--context {context} is not from 1 to {most}, the model's context"
        ))),
    }
}

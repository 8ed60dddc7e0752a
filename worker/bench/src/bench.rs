//! `stoker-worker bench`: measures the speed of the engine on this machine.
//!
//! `plan` turns the command line into jobs. `subprocess` runs each in its own process, where
//! `child` receives it and `measure` lets its workload measure. Each process returns rows, which
//! `report` prints and writes to files.

mod child;
mod cli;
mod help;
mod job;
mod measure;
mod plan;
mod progress_bar;
mod report;
mod subprocess;
mod targets;

pub use child::run as run_job;
pub use cli::BenchArgs;
use plan::Plan;
use progress_bar::ProgressDisplay;
use report::Output;
pub use report::{BenchRow, keys};
use targets::targets;

use crate::Error;

/// Runs the command.
pub fn run(args: &BenchArgs) -> Result<(), Error> {
    // Reports invalid flags and files before anything slow runs.
    plan::check(args)?;
    let files = report::Files::open(args)?;
    let Plan { jobs, columns, repeats } =
        plan::plan(args, |needs_text, formats| targets(args, needs_text, formats))?;
    let mut output = Output::new(files, columns, repeats);
    let progress = ProgressDisplay::new(jobs.len());
    output.begin(&progress, &jobs)?;
    for job in &jobs {
        for row in subprocess::run(job, &progress)? {
            output.add(&progress, row)?;
        }
    }
    output.finish(&progress)
}

//! `stoker-worker bench`: measures the speed of the engine on this machine, without a network.
//!
//! `plan` turns the command line into jobs. `process` runs each `job` in its own process, where
//! `measure` loads the model and `harness` steps the engine. Each process returns `row`s, which
//! `output` prints and writes to files.

mod child;
mod cli;
mod error;
mod gpu_check;
mod harness;
mod job;
mod lengths;
mod measure;
mod memory;
mod output;
mod padded_model;
mod plan;
mod prefill_interference;
mod process;
pub mod random;
mod row;
mod scenario;
mod shared_prefix;
mod soak;
mod speculate;
mod speedup;
mod table;
mod target;

pub use child::run as run_row;
pub use cli::{BenchArgs, Format};
use error::Error;
pub use gpu_check::{GpuCheckArgs, run as run_gpu_check};
use output::Output;
use process::ProgressDisplay;
pub use row::{BenchRow, KEYS};

/// Runs the command. Returns an error with its exit code: 1 for a failure, 2 for bad usage.
pub fn run(args: &BenchArgs) -> Result<(), (u8, String)> {
    bench(args).map_err(Error::for_shell)
}

fn bench(args: &BenchArgs) -> Result<(), Error> {
    // Reports invalid flags and files before anything slow runs.
    plan::check(args)?;
    let mut output = Output::open(args)?;
    let targets = target::targets(args)?;
    let jobs = plan::jobs(args, &targets, target::speculation_target(args)?.as_ref())?;
    let progress = ProgressDisplay::new(jobs.len());
    output.begin(&progress, &jobs)?;
    for job in &jobs {
        for row in process::run(job, &progress)? {
            output.add(&progress, row)?;
        }
    }
    output.finish(&progress)
}

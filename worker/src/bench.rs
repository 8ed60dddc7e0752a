//! `stoker-worker bench`: how fast the engine is on this machine, by itself.
//!
//! `plan` says what to measure, a `job` a row; `process` runs each in a process of its own, where
//! `measure` loads the model and `drive` steps the engine; `row` is what comes back and `output`
//! where it goes.

mod beside;
mod child;
mod cli;
mod drive;
mod error;
mod factor;
mod gpu_check;
mod job;
mod lengths;
mod measure;
mod memory;
mod output;
mod padded;
mod plan;
mod process;
pub mod random;
mod row;
mod scenario;
mod shared_prefix;
mod soak;
mod speculate;
mod subject;
mod table;

pub use child::run as run_row;
pub use cli::{BenchArgs, Format};
use error::Error;
pub use gpu_check::{GpuCheckArgs, run as run_gpu_check};
use output::Output;
use process::Progress;
pub use row::{KEYS, Row};

/// Runs the command. An error comes with its exit code: 1 for a failure, 2 for bad usage.
pub fn run(args: &BenchArgs) -> Result<(), (u8, String)> {
    bench(args).map_err(Error::for_shell)
}

fn bench(args: &BenchArgs) -> Result<(), Error> {
    // What is wrong with a flag or a file is known before anything takes time.
    plan::check(args)?;
    let mut output = Output::open(args)?;
    let subjects = subject::subjects(args)?;
    let jobs = plan::jobs(args, &subjects, subject::guessed(args)?.as_ref())?;
    let progress = Progress::new(jobs.len());
    output.begin(&progress, &jobs)?;
    for job in &jobs {
        for measured in process::run(job, &progress)? {
            output.add(&progress, measured)?;
        }
    }
    output.finish(&progress)
}

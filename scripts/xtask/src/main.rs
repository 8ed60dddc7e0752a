//! Tools for those who work on Stoker: `cargo xtask --help`.
#![cfg_attr(
    not(any(feature = "cuda-source", feature = "policies")),
    allow(dead_code, unreachable_code, unused_variables, reason = "no tool is enabled")
)]

#[cfg(feature = "cuda-source")]
mod cuda_source;
mod error;
#[cfg(feature = "policies")]
mod policies;

use std::process::ExitCode;

use clap::Parser;

/// Tools for those who work on Stoker
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", arg_required_else_help = true)]
enum Cli {
    #[cfg(feature = "policies")]
    Policies(policies::PoliciesArgs),
    #[cfg(feature = "cuda-source")]
    CudaSource(cuda_source::CudaSourceArgs),
}

fn main() -> ExitCode {
    let result: Result<(), error::Error> = match Cli::parse() {
        #[cfg(feature = "policies")]
        Cli::Policies(args) => policies::run(&args),
        #[cfg(feature = "cuda-source")]
        Cli::CudaSource(args) => cuda_source::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

//! `stoker-loadtest`: the command line of the load test.

use std::process::ExitCode;

use clap::Parser;
use stoker_loadtest::{cli::Cli, command};

#[tokio::main]
async fn main() -> ExitCode {
    match command::run(&Cli::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            error.exit_code()
        }
    }
}

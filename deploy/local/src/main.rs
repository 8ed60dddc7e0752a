//! `stoker`: a cluster in one process.

use std::process::ExitCode;

use clap::Parser;
use stoker::{
    cli::{Cli, Command},
    generate, serve,
};
use stoker_shared::telemetry;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match telemetry::init(&cli.log) {
        Err(message) => Err(stoker::error::Error::Usage(message)),
        Ok(()) => match cli.command {
            Command::Generate(args) => generate::run(args).await,
            Command::Serve(args) => serve::run(args).await,
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            error.exit_code()
        }
    }
}

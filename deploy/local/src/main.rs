//! `stoker`: a cluster in one process.

use std::process::ExitCode;

use stoker::{
    cli::{Cli, Command},
    drain, generate, serve, status,
};
use stoker_shared::{config, telemetry};

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = config::parse();
    let level = match cli.command {
        Command::Generate(_) | Command::Status(_) | Command::Drain(_) => "warn",
        Command::Serve(_) => "info",
    };
    let outcome = match telemetry::init(&cli.log, level) {
        Err(message) => Err(stoker::error::Error::Usage(message)),
        Ok(()) => match cli.command {
            Command::Generate(args) => generate::run(args).await,
            Command::Serve(args) => serve::run(args).await,
            Command::Status(args) => status::run(args).await,
            Command::Drain(args) => drain::run(args).await,
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

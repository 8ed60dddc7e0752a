//! `stoker`: a cluster in one process.

use std::process::ExitCode;

use stoker::{
    chat,
    cli::{Cli, Command},
    drain, generate, keys, serve, status, top, trace,
};
use stoker_shared::{cli, config, telemetry};

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = config::parse();
    let level = match cli.command {
        Command::Serve(_) => "info",
        _ => "warn",
    };
    let outcome = match telemetry::init(&cli.log, level) {
        Err(message) => Err(stoker::error::Error::Usage(message)),
        Ok(()) => match cli.command {
            Command::Generate(args) => generate::run(*args).await,
            Command::Chat(args) => chat::run(*args).await,
            Command::Serve(args) => serve::run(*args).await,
            Command::Status(args) => status::run(args).await,
            Command::Trace(args) => trace::run(args).await,
            Command::Top(args) => top::run(args).await,
            Command::Drain(args) => drain::run(args).await,
            Command::Keys(command) => keys::run(command),
        },
    };
    cli::finish(outcome.map(|()| ExitCode::SUCCESS))
}

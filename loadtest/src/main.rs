//! `stoker-loadtest`: the command line of the load test.

use std::process::ExitCode;

use stoker_loadtest::{
    cli::{Cli, Command},
    command, compare,
};
use stoker_shared::config;

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = config::parse();
    let result = match &cli.command {
        Some(Command::Compare(args)) => compare::run(args),
        None => command::run(&cli.run).await,
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        error.exit_code()
    })
}

//! `stoker-loadtest`: the command line of the load test.

use std::process::ExitCode;

use stoker_loadtest::{
    cli::{Cli, Command},
    command, compare,
};
use stoker_shared::{cli::finish, config};

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = config::parse();
    finish(match &cli.command {
        Some(Command::Compare(args)) => compare::run(args),
        None => command::run(&cli.run).await,
    })
}

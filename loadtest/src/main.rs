//! `stoker-loadtest`: the command line of the load test.

use std::process::ExitCode;

use stoker_loadtest::{cli::Cli, command};
use stoker_shared::config;

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = config::parse();
    match command::run(&cli).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            error.exit_code()
        }
    }
}

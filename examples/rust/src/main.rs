//! Streams the completion of a prompt.

use std::{
    io::{Write, stdout},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use stoker_client::{
    Address, CallError, Client, Deadline, EventKind, GenerateRequest, prompt,
    proto::{Sampling, Stopping},
};
use tonic_types::StatusExt;

/// Streams the completion of a prompt
#[derive(Debug, Parser)]
struct Cli {
    prompt: String,
    #[arg(long, default_value = "127.0.0.1:50051", value_name = "ADDR")]
    endpoint: Address,
    #[arg(long, default_value_t = 200, value_name = "TOKENS")]
    max_tokens: u32,
    #[arg(long, default_value_t = 0.5, value_name = "NUMBER")]
    temperature: f32,
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

async fn generate(client: &Client, cli: Cli) -> Result<(), CallError> {
    let sampling =
        Sampling { temperature: Some(cli.temperature), seed: cli.seed, ..Sampling::default() };
    let stopping = Stopping { max_tokens: Some(cli.max_tokens), ..Stopping::default() };
    let request = GenerateRequest {
        sampling: Some(sampling),
        stopping: Some(stopping),
        ..prompt(cli.prompt)
    };
    // The cluster knows the deadline too: it refuses what cannot meet it.
    let deadline = Deadline::after(Duration::from_secs(60));
    // A refusal that says when to try again is followed until then.
    let mut response = client.generate(request, deadline).await?;
    // A stream without its last event is an error.
    while let Some(event) = response.next().await? {
        if let EventKind::Token(token) = event.kind {
            print!("{}", token.text);
            // Text is shown as it arrives. A reader that is gone ends the program.
            if stdout().flush().is_err() {
                break;
            }
        }
    }
    println!();
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let client = match Client::connect(&cli.endpoint).await {
        Ok(client) => client,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let Err(error) = generate(&client, cli).await else { return ExitCode::SUCCESS };
    eprintln!("{error}");
    let details = error.status().get_error_details();
    if let Some(invalid) = details.bad_request() {
        for violation in &invalid.field_violations {
            eprintln!("{}: {}", violation.field, violation.description);
        }
    }
    if let Some(delay) = details.retry_info().and_then(|retry| retry.retry_delay) {
        eprintln!("Retry after {delay:.1?}");
    }
    ExitCode::FAILURE
}

//! Streams the completion of a prompt.

use std::{
    io::{Write, stdout},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use stoker_proto::v1::{
    GenerateRequest, Sampling, Stopping, generate_request::Input, generate_response::Event,
    inference_client::InferenceClient,
};
use tonic::{Request, Status};
use tonic_types::StatusExt;

/// Streams the completion of a prompt
#[derive(Debug, Parser)]
struct Cli {
    prompt: String,
    #[arg(long, default_value = "127.0.0.1:50051", value_name = "ADDR")]
    endpoint: String,
    #[arg(long, default_value_t = 200, value_name = "TOKENS")]
    max_tokens: u32,
    #[arg(long, default_value_t = 0.5, value_name = "NUMBER")]
    temperature: f32,
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

async fn generate(cli: Cli) -> Result<(), Status> {
    let connected = InferenceClient::connect(format!("http://{}", cli.endpoint)).await;
    let mut client = connected
        .map_err(|error| Status::unavailable(format!("--endpoint {}: {error}", cli.endpoint)))?;
    let mut request = Request::new(GenerateRequest {
        input: Some(Input::Prompt(cli.prompt)),
        sampling: Some(Sampling {
            temperature: Some(cli.temperature),
            seed: cli.seed,
            ..Default::default()
        }),
        stopping: Some(Stopping { max_tokens: Some(cli.max_tokens), ..Default::default() }),
        ..Default::default()
    });
    // The deadline, which the cluster knows too: it refuses what cannot meet it.
    request.set_timeout(Duration::from_secs(60));
    let mut events = client.generate(request).await?.into_inner();
    let mut finished = false;
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Token(token)) => {
                print!("{}", token.text);
                // Text is shown as it arrives. A reader that is gone ends the program.
                stdout().flush().map_err(|error| Status::cancelled(error.to_string()))?;
            }
            Some(Event::Finished(_)) => finished = true,
            _ => {}
        }
    }
    println!();
    // A stream without its last event is incomplete.
    if finished { Ok(()) } else { Err(Status::data_loss("the response ended early")) }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Err(status) = generate(Cli::parse()).await else { return ExitCode::SUCCESS };
    eprintln!("{:?}: {}", status.code(), status.message());
    let details = status.get_error_details();
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

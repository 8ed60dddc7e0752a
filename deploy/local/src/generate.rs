//! `stoker generate`: one request, streamed to standard output.

use std::{io, time::Instant};

use stoker_proto::v1::{
    GenerateRequest, ResponseOptions, Sampling, StopCondition, Stopping, generate_request::Input,
    generate_response::Event, stop_condition::Kind,
};
use stoker_shared::{client::Client, deadline::Deadline, validate};

use crate::{
    cli::GenerateArgs,
    connect,
    error::Error,
    explain::explain,
    output::{Output, ResponseSource},
    trace,
};

/// Runs the command.
pub async fn run(args: GenerateArgs) -> Result<(), Error> {
    let request = request(&args);
    // Validated before the model is loaded, so that a wrong value is reported at once.
    validate::generate(&request)?;
    let (cluster, address) = connect::cluster(&args.target).await?;
    let client = Client::connect_with(&address, &args.target.credentials).await?;
    let outcome = stream(client, request, &args).await;
    // The response is complete: there is nothing to drain.
    drop(cluster);
    outcome
}

fn request(args: &GenerateArgs) -> GenerateRequest {
    let stop_condition = |text: &String| StopCondition { kind: Some(Kind::Text(text.clone())) };
    GenerateRequest {
        input: Some(Input::Prompt(args.prompt.clone())),
        sampling: Some(Sampling {
            temperature: Some(args.temperature),
            seed: args.seed,
            num_sequences: args.num_sequences,
            ..Sampling::default()
        }),
        stopping: Some(Stopping {
            max_tokens: Some(args.max_tokens),
            conditions: args.stop.iter().map(stop_condition).collect(),
            ..Stopping::default()
        }),
        response: args.logprobs.map(|top_candidates| ResponseOptions {
            output_logprobs: true,
            top_candidates,
            ..ResponseOptions::default()
        }),
        no_special_tokens: args.no_special_tokens,
        special_tokens_as_text: args.special_tokens_as_text,
        ..GenerateRequest::default()
    }
}

async fn stream(
    client: Client,
    request: GenerateRequest,
    args: &GenerateArgs,
) -> Result<(), Error> {
    let started = Instant::now();
    let mut first_token = None;
    let mut responses = client.generate(request, Deadline::NEVER).await?;
    let mut output = Output::new(args.json);
    let mut source = ResponseSource::default();
    while let Some(event) = responses.next().await? {
        let choice = event.choice;
        let printed = match event.kind {
            Event::Accepted(accepted) => {
                source = ResponseSource {
                    worker: accepted.worker,
                    model: accepted.model,
                    seed: accepted.seed,
                    request_id: accepted.request_id,
                };
                output.prompt(&args.prompt)
            }
            Event::Token(delta) => {
                first_token.get_or_insert_with(Instant::now);
                output.piece(choice, &delta)
            }
            // Other choices continue.
            Event::Finished(end) if end.usage.is_none() => output.ended(choice, &end),
            Event::Finished(end) => {
                let first = first_token.unwrap_or_else(Instant::now);
                let sequences = args.num_sequences.unwrap_or(1);
                let printed = output.finished(choice, &source, &end, first - started, sequences);
                if args.explain {
                    let total = started.elapsed();
                    eprintln!("\n{}", explain(&source.worker, &end, total, trace::width()));
                }
                printed
            }
            Event::Prompt(_) | Event::Preempted(_) => Ok(()),
        };
        if printed.is_err() {
            return ignore_broken_pipe(printed);
        }
    }
    Ok(())
}

/// Ignores a broken pipe, since a reader such as `head` may close it early.
fn ignore_broken_pipe(printed: io::Result<()>) -> Result<(), Error> {
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Failed(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

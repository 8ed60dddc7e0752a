//! One request, from the moment it was meant to begin to the last event of its answer.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use stoker_proto::v1::{
    Accepted, FinishReason, Finished, GenerateRequest, generate_response::Event,
};
use stoker_shared::{
    ServiceError,
    client::{CallError, Client},
    deadline::Deadline,
};
use tokio::time::Instant;
use tonic::Status;

/// What goes on right now, for the line that a terminal shows.
#[derive(Debug, Default)]
pub struct Live {
    /// Requests that were sent.
    pub sent: AtomicU64,
    /// Tokens that came.
    pub tokens: AtomicU64,
}

/// What came of a request.
#[derive(Debug)]
pub struct Outcome {
    /// The number of the request.
    pub index: u64,
    /// How long after the moment it was meant for it was sent.
    pub lag: Duration,
    /// What came of the answer, all of it if `end` is well.
    pub answer: Partial,
    /// The last event, or why there is none.
    pub end: Result<Finished, CallError>,
}

/// An answer, or the beginning of one. All times count from when the request was meant to begin.
#[derive(Debug, Default)]
pub struct Partial {
    /// The first event; `None` if the request was refused.
    pub accepted: Option<Accepted>,
    /// Token ids so far.
    pub ids: Vec<u32>,
    /// Text so far.
    pub text: String,
    /// When the first token came.
    pub first_token: Option<Duration>,
    /// The time between one event with tokens and the next, in microseconds.
    pub gaps: Vec<u32>,
    /// When the last event came, or the failure.
    pub whole: Duration,
}

/// Sends `request` and reads its answer to the end. `meant` is when it was to begin.
pub async fn call(
    client: &Client,
    request: GenerateRequest,
    index: u64,
    meant: Instant,
    deadline: Option<Duration>,
    live: &Live,
) -> Outcome {
    let lag = meant.elapsed();
    let deadline = deadline.map_or(Deadline::NEVER, Deadline::after);
    live.sent.fetch_add(1, Ordering::Relaxed);
    let mut answer = Partial::default();
    let end = read(client, request, meant, deadline, live, &mut answer).await;
    if end.is_err() {
        answer.whole = meant.elapsed();
    }
    Outcome { index, lag, answer, end }
}

async fn read(
    client: &Client,
    request: GenerateRequest,
    meant: Instant,
    deadline: Deadline,
    live: &Live,
    answer: &mut Partial,
) -> Result<Finished, CallError> {
    let mut events = client.generate(request, deadline).await?;
    let mut last_token: Option<Instant> = None;
    let mut end = None;
    while let Some(event) = events.next().await? {
        let now = Instant::now();
        match event.kind {
            // Comes again if another worker took over before the first token.
            Event::Accepted(accepted) => answer.accepted = Some(accepted),
            Event::Token(delta) => {
                match last_token {
                    None => answer.first_token = Some(now - meant),
                    Some(last) => {
                        answer
                            .gaps
                            .push(u32::try_from((now - last).as_micros()).unwrap_or(u32::MAX));
                    }
                }
                last_token = Some(now);
                live.tokens.fetch_add(delta.ids.len() as u64, Ordering::Relaxed);
                answer.ids.extend_from_slice(&delta.ids);
                answer.text.push_str(&delta.text);
            }
            Event::Finished(finished) => {
                answer.whole = now - meant;
                end = Some(finished);
            }
            Event::Prompt(_) | Event::Preempted(_) => {}
        }
    }
    // `next` gives none before the last event has come.
    let end = end.unwrap_or_default();
    complete(answer, &end)
        .map_err(|what| CallError::from(Status::from(ServiceError::Internal(what))))?;
    Ok(end)
}

/// An answer that says it is complete has to be.
fn complete(answer: &Partial, end: &Finished) -> Result<(), String> {
    let (came, made) = (answer.ids.len(), end.usage.unwrap_or_default().completion_tokens);
    if came as u64 != u64::from(made) {
        return Err(format!("{came} tokens came of the {made} that were made"));
    }
    match end.reason() {
        FinishReason::Stop | FinishReason::Length => Ok(()),
        other => Err(format!("the answer ended with {}", other.as_str_name())),
    }
}

//! One request, from its scheduled time to the last event of its response.

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

/// Counters of a running load test, for the progress line.
#[derive(Debug, Default)]
pub struct LiveCounters {
    /// Number of sent requests.
    pub sent: AtomicU64,
    /// Number of received tokens.
    pub tokens: AtomicU64,
}

/// The result of a request.
#[derive(Debug)]
pub struct CallOutcome {
    /// Index of the request.
    pub index: u64,
    /// Delay between the scheduled time and the time when the request was sent.
    pub send_lag: Duration,
    /// The received part of the response; the whole response if `end` is `Ok`.
    pub response: ReceivedResponse,
    /// The last event, or the error.
    pub end: Result<Finished, CallError>,
}

/// The received part of a response. All times are relative to the scheduled time of the request.
#[derive(Debug, Default)]
pub struct ReceivedResponse {
    /// The first event. `None` if the request was rejected.
    pub accepted: Option<Accepted>,
    /// Received token ids.
    pub ids: Vec<u32>,
    /// Received text.
    pub text: String,
    /// Time of the first token.
    pub first_token: Option<Duration>,
    /// Times between consecutive events with tokens, in microseconds.
    pub inter_token: Vec<u32>,
    /// Time of the last event, or of the error.
    pub end_to_end: Duration,
}

/// Sends `request`, which was scheduled for `scheduled`, and reads the whole response.
pub async fn call(
    client: &Client,
    request: GenerateRequest,
    index: u64,
    scheduled: Instant,
    deadline: Option<Duration>,
    live: &LiveCounters,
) -> CallOutcome {
    let send_lag = scheduled.elapsed();
    let deadline = deadline.map_or(Deadline::NEVER, Deadline::after);
    live.sent.fetch_add(1, Ordering::Relaxed);
    let mut response = ReceivedResponse::default();
    let end = read(client, request, scheduled, deadline, live, &mut response).await;
    if end.is_err() {
        response.end_to_end = scheduled.elapsed();
    }
    CallOutcome { index, send_lag, response, end }
}

async fn read(
    client: &Client,
    request: GenerateRequest,
    scheduled: Instant,
    deadline: Deadline,
    live: &LiveCounters,
    response: &mut ReceivedResponse,
) -> Result<Finished, CallError> {
    let mut events = client.generate(request, deadline).await?;
    let mut last_token: Option<Instant> = None;
    let mut end = None;
    while let Some(event) = events.next().await? {
        let now = Instant::now();
        match event.kind {
            // Sent again if another worker took over before the first token.
            Event::Accepted(accepted) => response.accepted = Some(accepted),
            Event::Token(delta) => {
                match last_token {
                    None => response.first_token = Some(now - scheduled),
                    Some(last) => {
                        response
                            .inter_token
                            .push(u32::try_from((now - last).as_micros()).unwrap_or(u32::MAX));
                    }
                }
                last_token = Some(now);
                live.tokens.fetch_add(delta.ids.len() as u64, Ordering::Relaxed);
                response.ids.extend_from_slice(&delta.ids);
                response.text.push_str(&delta.text);
            }
            Event::Finished(finished) => {
                response.end_to_end = now - scheduled;
                end = Some(finished);
            }
            Event::Prompt(_) | Event::Preempted(_) => {}
        }
    }
    // Always set: `next` returns `None` only after the last event.
    let end = end.unwrap_or_default();
    check_complete(response, &end)
        .map_err(|error| CallError::from(Status::from(ServiceError::Internal(error))))?;
    Ok(end)
}

/// Checks that a finished response has as many tokens as it reports, and a valid finish reason.
fn check_complete(response: &ReceivedResponse, end: &Finished) -> Result<(), String> {
    let (received, reported) =
        (response.ids.len(), end.usage.unwrap_or_default().completion_tokens);
    if received as u64 != u64::from(reported) {
        return Err(format!("received {received} tokens of the {reported} that were generated"));
    }
    match end.reason() {
        FinishReason::Stop | FinishReason::Length => Ok(()),
        other => Err(format!("the response ended with {}", other.as_str_name())),
    }
}

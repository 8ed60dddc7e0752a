//! The stream of one answer: from the engine's events to those on the wire.

use std::time::{Duration, Instant};

use futures::{Stream, stream};
use stoker_engine::{Event, Finish, FinishReason};
use stoker_proto::v1::{
    self as proto, Accepted, GenerateResponse, TokenDelta, finished::Matched,
    generate_response::Event as Wire,
};
use stoker_shared::{ServiceError, deadline::Deadline};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What a stream needs besides the engine's events.
pub struct Answer {
    /// Said first.
    pub accepted: Accepted,
    /// Stamped on every event.
    pub attempt: u32,
    /// When the call came in.
    pub arrived: Instant,
    /// Checks and tokenising.
    pub tokenize: Duration,
    /// Ends the stream with an error.
    pub deadline: Deadline,
    /// Ends the stream too, when the worker shuts down.
    pub cut: CancellationToken,
}

/// Where the stream stands.
enum State {
    Accepted(Accepted),
    Running,
    Over,
}

impl Answer {
    /// The stream. Dropping it cancels the sequence.
    pub fn stream(
        self,
        events: mpsc::Receiver<Event>,
    ) -> impl Stream<Item = Result<GenerateResponse, ServiceError>> {
        let state = State::Accepted(self.accepted.clone());
        stream::unfold((self, events, state), |(answer, mut events, state)| async move {
            let (item, state) = match state {
                State::Accepted(accepted) => (Ok(Wire::Accepted(accepted)), State::Running),
                State::Running => answer.next(&mut events).await,
                State::Over => return None,
            };
            let item = item.map(|event| GenerateResponse {
                choice: 0,
                event: Some(event),
                attempt: answer.attempt,
            });
            Some((item, (answer, events, state)))
        })
    }

    async fn next(
        &self,
        events: &mut mpsc::Receiver<Event>,
    ) -> (Result<Wire, ServiceError>, State) {
        let event = tokio::select! {
            // Tokens that are there are sent, even if the deadline passed in the meantime.
            biased;
            event = events.recv() => event,
            () = self.deadline.passed() => {
                let stage = "while generating".into();
                return (Err(ServiceError::DeadlineExceeded { stage }), State::Over);
            }
            () = self.cut.cancelled() => {
                let error = ServiceError::unavailable("the worker shut down during the answer");
                return (Err(error), State::Over);
            }
        };
        match event {
            Some(Event::Token { ids, text }) => {
                let delta = TokenDelta { ids, text, logprobs: Vec::new() };
                (Ok(Wire::Token(delta)), State::Running)
            }
            Some(Event::Finished(finish)) => (Ok(self.finished(finish)), State::Over),
            Some(Event::Failed(failure)) => {
                (Err(ServiceError::Internal(failure.to_string())), State::Over)
            }
            None => {
                // Another worker may do better.
                let cause = "the worker's engine stopped before the answer was complete";
                (Err(ServiceError::unavailable(cause)), State::Over)
            }
        }
    }

    fn finished(&self, finish: Finish) -> Wire {
        let (reason, matched) = match finish.reason {
            FinishReason::StopToken(id) => {
                (proto::FinishReason::Stop, Some(Matched::StopTokenId(id)))
            }
            FinishReason::StopString(text) => {
                (proto::FinishReason::Stop, Some(Matched::StopText(text)))
            }
            FinishReason::Length => (proto::FinishReason::Length, None),
        };
        let total = self.arrived.elapsed();
        let timings = finish.timings;
        // The way from the engine to here counts as decode, so that the stages add up.
        let first_token = self.tokenize + timings.queue + timings.prefill;
        Wire::Finished(proto::Finished {
            reason: reason.into(),
            matched,
            usage: Some(proto::Usage {
                prompt_tokens: finish.prompt_tokens as u32,
                completion_tokens: finish.completion_tokens as u32,
                cached_prompt_tokens: 0,
            }),
            timings: Some(proto::Timings {
                tokenize: wire(self.tokenize),
                queue: wire(timings.queue),
                prefill: wire(timings.prefill),
                decode: wire(total.saturating_sub(first_token)),
                worker_total: wire(total),
                time_to_first_token: wire(first_token),
                steps: timings.steps,
                preemptions: timings.preemptions,
                ..proto::Timings::default()
            }),
        })
    }
}

fn wire(duration: Duration) -> Option<prost_types::Duration> {
    // Fails beyond 292 billion years.
    duration.try_into().ok()
}

//! The stream of one answer: from the engine's events to those on the wire.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, stream};
use stoker_engine::{
    Event, Finish, FinishReason, RequestError, Summary, Token, TokenLogprob, tokenizer::Tokenizer,
};
use stoker_proto::duration::to_wire;
use stoker_proto::v1::{
    self as proto, Accepted, Candidate, GenerateResponse, PromptLogprobs, TokenDelta,
    finished::Matched, generate_response::Event as Wire,
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
    /// Spells candidates.
    pub tokenizer: Arc<Tokenizer>,
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
    /// The stream. Dropping it cancels the request.
    pub fn stream(
        self,
        events: mpsc::Receiver<Event>,
    ) -> impl Stream<Item = Result<GenerateResponse, ServiceError>> {
        let state = State::Accepted(self.accepted.clone());
        stream::unfold((self, events, state), |(answer, mut events, state)| async move {
            let (item, state) = match state {
                State::Accepted(accepted) => (Ok((0, Wire::Accepted(accepted))), State::Running),
                State::Running => answer.next(&mut events).await,
                State::Over => return None,
            };
            let item = item.map(|(choice, event)| GenerateResponse {
                choice,
                event: Some(event),
                attempt: answer.attempt,
            });
            Some((item, (answer, events, state)))
        })
    }

    /// The next event with the choice that it belongs to, and where the stream stands after it.
    async fn next(
        &self,
        events: &mut mpsc::Receiver<Event>,
    ) -> (Result<(u32, Wire), ServiceError>, State) {
        let event = tokio::select! {
            // Tokens that are there are sent, even if the deadline passed in the meantime.
            biased;
            event = events.recv() => event,
            () = self.deadline.passed() => {
                let stage = "while generating".into();
                return (Err(ServiceError::DeadlineExceeded { stage }), State::Over);
            }
            () = self.cut.cancelled() => {
                // Its time to drain is over: whoever routes may go on elsewhere.
                return (Err(ServiceError::Draining("the worker".into())), State::Over);
            }
        };
        match event {
            Some(Event::PromptLogprobs(tokens)) => {
                let tokens = tokens.into_iter().map(|token| self.logprob(token)).collect();
                (Ok((0, Wire::Prompt(PromptLogprobs { tokens }))), State::Running)
            }
            Some(Event::Preempted { choice }) => {
                (Ok((choice, Wire::Preempted(proto::Preempted {}))), State::Running)
            }
            Some(Event::Token(Token { choice, id, text, logprob })) => {
                let logprobs = logprob.into_iter().map(|token| self.logprob(token)).collect();
                let delta = TokenDelta { ids: vec![id], text, logprobs };
                (Ok((choice, Wire::Token(delta))), State::Running)
            }
            Some(Event::Finished(finish)) => {
                let state = if finish.summary.is_some() { State::Over } else { State::Running };
                (Ok((finish.choice, self.finished(finish))), state)
            }
            Some(Event::Failed(failure)) => (Err(failed(&failure)), State::Over),
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
        Wire::Finished(proto::Finished {
            reason: reason.into(),
            matched,
            usage: finish.summary.map(|summary| proto::Usage {
                prompt_tokens: summary.prompt_tokens as u32,
                completion_tokens: summary.completion_tokens as u32,
                cached_prompt_tokens: summary.cached_prompt_tokens as u32,
            }),
            timings: finish.summary.map(|summary| self.timings(&summary).into()),
        })
    }

    fn timings(&self, summary: &Summary) -> proto::Timings {
        let total = self.arrived.elapsed();
        let timings = summary.timings;
        // The way from the engine to here counts as decode, so that the stages add up.
        let first_token = self.tokenize + timings.queue + timings.prefill;
        proto::Timings {
            tokenize: to_wire(self.tokenize),
            queue: to_wire(timings.queue),
            prefill: to_wire(timings.prefill),
            decode: to_wire(total.saturating_sub(first_token)),
            worker_total: to_wire(total),
            time_to_first_token: to_wire(first_token),
            steps: timings.steps,
            preemptions: timings.preemptions,
            drafted_tokens: timings.drafted,
            accepted_tokens: timings.accepted,
            ..proto::Timings::default()
        }
    }

    fn logprob(&self, token: TokenLogprob) -> proto::TokenLogprob {
        let candidate = |(id, logprob)| {
            let bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
            Candidate { id, logprob, text: String::from_utf8_lossy(bytes).into_owned() }
        };
        proto::TokenLogprob {
            id: token.id,
            logprob: token.logprob,
            top: token.top.into_iter().map(candidate).collect(),
        }
    }
}

/// The error of a request that could not go on.
fn failed(failure: &RequestError) -> ServiceError {
    let stage = match failure {
        RequestError::Rejected(refused) => return crate::service::refused(refused, None),
        RequestError::EnginePanicked { cause, sequences } => {
            let (cause, sequences) = (cause.clone(), sequences.clone());
            return ServiceError::EnginePanicked { cause, sequences };
        }
        // The router's words, not the client's.
        RequestError::NotItsText { .. } | RequestError::Ended { .. } => {
            return ServiceError::Mismatch(failure.to_string());
        }
        RequestError::DeadlinePassed { began: true } => "while generating".into(),
        RequestError::DeadlinePassed { began: false } => "while queued".into(),
        RequestError::TooLate { .. } => format!("while queued: {failure}"),
        other => return ServiceError::Internal(other.to_string()),
    };
    ServiceError::DeadlineExceeded { stage }
}

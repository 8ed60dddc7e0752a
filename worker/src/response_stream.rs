//! The response stream of one call: converts the engine's events to wire events.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use futures::{Stream, stream};
use stoker_engine::{
    Event, Finish, FinishReason, RequestError, Summary, Timings, Token, TokenLogprob,
    tokenizer::Tokenizer,
};
use stoker_proto::duration::to_wire;
use stoker_proto::v1::{
    self as proto, Accepted, Candidate, GenerateResponse, PromptLogprobs, TokenDelta,
    finished::Matched, generate_response::Event as Wire,
};
use stoker_shared::{ServiceError, deadline::Deadline};
use tokio::sync::mpsc;

use crate::{admission_error::admission_error, request_trace::StageEnds};

/// What a stream needs besides the engine's events.
pub struct ResponseStream {
    /// The first event.
    pub accepted: Accepted,
    /// Attempt number that every event carries.
    pub attempt: u32,
    /// Decodes the text of candidates.
    pub tokenizer: Arc<Tokenizer>,
    /// When the call arrived.
    pub arrived: Instant,
    /// When it had been validated and tokenised.
    pub tokenized: Instant,
    /// Set with the last event: the ends of the stages of the call.
    pub ends: Arc<OnceLock<StageEnds>>,
    /// Ends the stream with an error when it passes.
    pub deadline: Deadline,
}

/// State of the stream.
enum StreamState {
    /// The accepted event is to be sent.
    Accepted(Accepted),
    /// Events of the engine are forwarded.
    Running,
    /// The last event was sent.
    Ended,
}

impl ResponseStream {
    /// Returns the stream. Dropping it cancels the request.
    pub fn stream(
        self,
        events: mpsc::Receiver<Event>,
    ) -> impl Stream<Item = Result<GenerateResponse, ServiceError>> {
        let state = StreamState::Accepted(self.accepted.clone());
        stream::unfold((self, events, state), |(response, mut events, state)| async move {
            let (item, state) = match state {
                StreamState::Accepted(accepted) => {
                    (Ok((0, Wire::Accepted(accepted))), StreamState::Running)
                }
                StreamState::Running => response.next(&mut events).await,
                StreamState::Ended => return None,
            };
            let item = item.map(|(choice, event)| GenerateResponse {
                choice,
                event: Some(event),
                attempt: response.attempt,
            });
            Some((item, (response, events, state)))
        })
    }

    /// Returns the next event with the choice that it belongs to, and the state after it.
    async fn next(
        &self,
        events: &mut mpsc::Receiver<Event>,
    ) -> (Result<(u32, Wire), ServiceError>, StreamState) {
        let event = tokio::select! {
            // Tokens that are ready are sent, even if the deadline has passed in the meantime.
            biased;
            event = events.recv() => event,
            () = self.deadline.passed() => {
                let stage = "while generating".into();
                return (Err(ServiceError::DeadlineExceeded { stage }), StreamState::Ended);
            }
        };
        match event {
            Some(Event::PromptLogprobs(tokens)) => {
                let tokens = tokens.into_iter().map(|token| self.logprob(token)).collect();
                (Ok((0, Wire::Prompt(PromptLogprobs { tokens }))), StreamState::Running)
            }
            Some(Event::Preempted { choice }) => {
                (Ok((choice, Wire::Preempted(proto::Preempted {}))), StreamState::Running)
            }
            Some(Event::Token(Token { choice, id, text, logprob })) => {
                let logprobs = logprob.into_iter().map(|token| self.logprob(token)).collect();
                let delta = TokenDelta { ids: vec![id], text, logprobs };
                (Ok((choice, Wire::Token(delta))), StreamState::Running)
            }
            Some(Event::Finished(finish)) => {
                let state = if finish.summary.is_some() {
                    StreamState::Ended
                } else {
                    StreamState::Running
                };
                (Ok((finish.choice, self.finished(finish))), state)
            }
            Some(Event::Failed(error)) => (Err(service_error(&error)), StreamState::Ended),
            None => {
                // UNAVAILABLE, so that the router resumes on another worker.
                let cause = "the worker's engine stopped before the response was complete";
                (Err(ServiceError::unavailable(cause)), StreamState::Ended)
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

    /// Called with the last event.
    fn timings(&self, summary: &Summary) -> proto::Timings {
        let timings = summary.timings;
        let Timings { scheduled, first_token, last_token, .. } = timings;
        let (tokenized, sent) = (self.tokenized, Instant::now());
        let ends = StageEnds { tokenized, scheduled, first_token, last_token, sent };
        // There is one last event.
        let _ = self.ends.set(ends);
        proto::Timings {
            detokenize: to_wire(timings.detokenize),
            steps: timings.steps,
            preemptions: timings.preemptions,
            drafted_tokens: timings.drafted,
            accepted_tokens: timings.accepted,
            ..ends.timings(self.arrived)
        }
    }

    fn logprob(&self, token: TokenLogprob) -> proto::TokenLogprob {
        let candidate = |(id, logprob)| {
            let bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
            let text = String::from_utf8_lossy(bytes).into_owned();
            Candidate { id, logprob, text, token_bytes: bytes.to_vec() }
        };
        let bytes = self.tokenizer.token_bytes(token.id).unwrap_or_default();
        proto::TokenLogprob {
            id: token.id,
            logprob: token.logprob,
            top: token.top.into_iter().map(candidate).collect(),
            token_bytes: bytes.to_vec(),
        }
    }
}

/// Converts the error of a request that the engine could not complete.
fn service_error(error: &RequestError) -> ServiceError {
    let stage = match error {
        RequestError::Rejected(rejected) => return admission_error(rejected, None),
        RequestError::EnginePanicked { cause, sequences } => {
            let (cause, sequences) = (cause.clone(), sequences.clone());
            return ServiceError::EnginePanicked { cause, sequences };
        }
        // The router sent the state that does not match, not the client.
        RequestError::ResumeTextMismatch { .. } | RequestError::TokensAfterEnd { .. } => {
            return ServiceError::Mismatch(error.to_string());
        }
        RequestError::DeadlinePassed { scheduled: true } => "while generating".into(),
        RequestError::DeadlinePassed { scheduled: false } => "while queued".into(),
        RequestError::TooLate { .. } => format!("while queued: {error}"),
        other => return ServiceError::Internal(other.to_string()),
    };
    ServiceError::DeadlineExceeded { stage }
}

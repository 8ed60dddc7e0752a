//! Output of `stoker generate`: text for people, or a JSON object a line for programs.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use serde::Serialize;
use stoker_proto::duration::{from_wire, or_zero};
use stoker_proto::v1::{
    self, Candidate, FinishReason, Finished, TokenDelta, TokenLogprob, finished::Matched,
};

/// Terminal sequence that dims text other than the completion.
const DIM: &str = "\x1b[2m";
/// Terminal sequence that ends [`DIM`].
const PLAIN: &str = "\x1b[0m";

/// One piece of text.
#[derive(Serialize)]
struct Piece<'a> {
    choice: u32,
    text: &'a str,
    token_ids: &'a [u32],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logprobs: Vec<Logprob<'a>>,
}

/// Log probability of a token, and the most likely candidates.
#[derive(Serialize)]
struct Logprob<'a> {
    id: u32,
    logprob: f32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top: Vec<TopCandidate<'a>>,
}

#[derive(Serialize)]
struct TopCandidate<'a> {
    id: u32,
    logprob: f32,
    text: &'a str,
}

/// The end of one choice.
#[derive(Serialize)]
struct ChoiceEnd<'a> {
    choice: u32,
    finish_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    matched_stop: Option<&'a str>,
}

/// The last record: the end of the last choice, and usage and timings of the request.
#[derive(Serialize)]
struct FinalRecord<'a> {
    #[serde(flatten)]
    end: ChoiceEnd<'a>,
    usage: Usage,
    timings: Timings,
    worker: &'a str,
    model: &'a str,
    seed: u64,
    request_id: &'a str,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    cached_prompt_tokens: u32,
}

/// Timings as the last event reports them. Durations are in seconds.
#[derive(Debug, Serialize)]
pub struct Timings {
    admission_seconds: f64,
    route_seconds: f64,
    attempts_seconds: f64,
    resume_seconds: f64,
    tokenize_seconds: f64,
    queue_seconds: f64,
    prefill_seconds: f64,
    decode_seconds: f64,
    stream_seconds: f64,
    detokenize_seconds: f64,
    worker_total_seconds: f64,
    total_seconds: f64,
    time_to_first_token_seconds: f64,
    steps: u32,
    preemptions: u32,
    drafted_tokens: u32,
    accepted_tokens: u32,
    resumes: u32,
}

impl Timings {
    /// Converts the timings of a response.
    pub fn of(timings: &v1::Timings) -> Self {
        let seconds = |stage| or_zero(stage).as_secs_f64();
        Self {
            admission_seconds: seconds(timings.admission),
            route_seconds: seconds(timings.route),
            attempts_seconds: seconds(timings.attempts),
            resume_seconds: seconds(timings.resume),
            tokenize_seconds: seconds(timings.tokenize),
            queue_seconds: seconds(timings.queue),
            prefill_seconds: seconds(timings.prefill),
            decode_seconds: seconds(timings.decode),
            stream_seconds: seconds(timings.stream),
            detokenize_seconds: seconds(timings.detokenize),
            worker_total_seconds: seconds(timings.worker_total),
            total_seconds: seconds(timings.total),
            time_to_first_token_seconds: seconds(timings.time_to_first_token),
            steps: timings.steps,
            preemptions: timings.preemptions,
            drafted_tokens: timings.drafted_tokens,
            accepted_tokens: timings.accepted_tokens,
            resumes: timings.resumes,
        }
    }
}

/// Source of a response, from its `Accepted` event.
#[derive(Debug, Default)]
pub struct ResponseSource {
    /// The worker's id.
    pub worker: String,
    /// The model's name.
    pub model: String,
    /// The seed in use.
    pub seed: u64,
    /// The request id.
    pub request_id: String,
}

/// Prints a response as it arrives.
pub struct Output {
    json: bool,
    out: io::StdoutLock<'static>,
}

impl Output {
    /// Creates an output to standard output, as JSON if `json`.
    pub fn new(json: bool) -> Self {
        Self { json, out: io::stdout().lock() }
    }

    /// Prints the prompt before the completion on a terminal. A pipe gets only the completion.
    pub fn prompt(&mut self, prompt: &str) -> io::Result<()> {
        if !self.json && self.out.is_terminal() {
            write!(self.out, "{DIM}{prompt}{PLAIN}")?;
            self.out.flush()?;
        }
        Ok(())
    }

    /// Prints a piece of text and flushes.
    pub fn piece(&mut self, choice: u32, delta: &TokenDelta) -> io::Result<()> {
        if self.json {
            let logprobs = delta.logprobs.iter().map(logprob).collect();
            self.line(&Piece { choice, text: &delta.text, token_ids: &delta.ids, logprobs })?;
        } else {
            self.out.write_all(delta.text.as_bytes())?;
        }
        self.out.flush()
    }

    /// Prints the end of a choice while others continue.
    pub fn ended(&mut self, choice: u32, finished: &Finished) -> io::Result<()> {
        if self.json { self.line(&choice_end(choice, finished)) } else { Ok(()) }
    }

    /// Prints the final record: a JSON object, or a line on standard error.
    ///
    /// - first_token: time from the call to the first token.
    /// - sequences: number of choices.
    pub fn finished(
        &mut self,
        choice: u32,
        source: &ResponseSource,
        end: &Finished,
        first_token: Duration,
        sequences: u32,
    ) -> io::Result<()> {
        let usage = end.usage.unwrap_or_default();
        if self.json {
            return self.line(&final_record(choice, source, end));
        }
        writeln!(self.out)?;
        self.out.flush()?;
        let tokens = usage.completion_tokens;
        let rate = decode_rate(tokens, sequences, end.timings.as_deref());
        let rate = rate.map_or(String::new(), |rate| format!(", {rate:.0} tokens/s"));
        let first = 1e3 * first_token.as_secs_f64();
        let (dim, plain) = if io::stderr().is_terminal() { (DIM, PLAIN) } else { ("", "") };
        let plural = if tokens == 1 { "" } else { "s" };
        eprintln!(
            "{dim}{tokens} token{plural}, first after {first:.1} ms{rate}, served by {}{plain}",
            source.worker
        );
        Ok(())
    }

    fn line(&mut self, object: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, object)?;
        writeln!(self.out)?;
        self.out.flush()
    }
}

/// Returns the tokens per second that were generated after the first of each choice, in the time that the
/// worker took for them. When they arrived says little: tokens that were generated one by one may arrive
/// together.
fn decode_rate(tokens: u32, sequences: u32, timings: Option<&v1::Timings>) -> Option<f64> {
    let decode = from_wire(timings?.decode)?.as_secs_f64();
    let after_first = tokens.checked_sub(sequences.max(1)).filter(|rest| *rest > 0)?;
    (decode > 0.0).then(|| f64::from(after_first) / decode)
}

fn logprob(token: &TokenLogprob) -> Logprob<'_> {
    Logprob {
        id: token.id,
        logprob: token.logprob,
        top: token.top.iter().map(top_candidate).collect(),
    }
}

fn top_candidate(candidate: &Candidate) -> TopCandidate<'_> {
    TopCandidate { id: candidate.id, logprob: candidate.logprob, text: &candidate.text }
}

fn choice_end(choice: u32, finished: &Finished) -> ChoiceEnd<'_> {
    ChoiceEnd {
        choice,
        finish_reason: match finished.reason() {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Unspecified => "unknown",
        },
        matched_stop: match &finished.matched {
            Some(Matched::StopText(text)) => Some(text),
            _ => None,
        },
    }
}

fn final_record<'a>(
    choice: u32,
    source: &'a ResponseSource,
    finished: &'a Finished,
) -> FinalRecord<'a> {
    let usage = finished.usage.unwrap_or_default();
    let timings = finished.timings.as_deref().copied().unwrap_or_default();
    FinalRecord {
        end: choice_end(choice, finished),
        usage: Usage {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            cached_prompt_tokens: usage.cached_prompt_tokens,
        },
        timings: Timings::of(&timings),
        worker: &source.worker,
        model: &source.model,
        seed: source.seed,
        request_id: &source.request_id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_worker_whenever_tokens_arrive() {
        let decode = prost_types::Duration { seconds: 0, nanos: 500_000_000 };
        let timings = v1::Timings { decode: Some(decode), ..v1::Timings::default() };
        assert_eq!(decode_rate(16, 1, Some(&timings)), Some(30.0));
        assert_eq!(decode_rate(16, 4, Some(&timings)), Some(24.0));
        // A single token has no rate, and neither has one whose time is not known.
        assert_eq!(decode_rate(1, 1, Some(&timings)), None);
        assert_eq!(decode_rate(16, 1, Some(&v1::Timings::default())), None);
        assert_eq!(decode_rate(16, 1, None), None);
    }
}

//! The spans of a request on a worker. The call opens and closes them; the engine thread adds the
//! steps that computed it.

use std::{
    sync::OnceLock,
    time::{Instant, SystemTime},
};

use stoker_engine::{StepPart, StepReport};
use stoker_proto::{duration::to_wire, v1::Timings};
use stoker_shared::{
    names::{attribute, span},
    telemetry::trace::{Attribute, Clock, SpanKind, TraceSpan},
};

/// The span of a call, and those of the stages below it.
#[derive(Debug)]
pub struct RequestTrace {
    span: TraceSpan,
    clock: Clock,
    /// Opened by the first step that belongs to them, or when the call has ended.
    prefill: OnceLock<TraceSpan>,
    decode: OnceLock<TraceSpan>,
}

/// Ends of the stages of a call: each stage begins where the one before it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageEnds {
    /// The request was validated and tokenised.
    pub tokenized: Instant,
    /// Its first step began.
    pub scheduled: Instant,
    /// Its first token was drawn.
    pub first_token: Instant,
    /// Its last token was drawn and converted to text.
    pub last_token: Instant,
    /// Its last message was taken for sending.
    pub sent: Instant,
}

impl StageEnds {
    /// Returns the stages of a call that arrived at `arrived`, in order: name, begin, end. Timings
    /// and spans are both made of these, so they agree.
    fn stages(&self, arrived: Instant) -> [(&'static str, Instant, Instant); 5] {
        let Self { tokenized, scheduled, first_token, last_token, sent } = *self;
        [
            (span::TOKENIZE, arrived, tokenized),
            (span::QUEUE, tokenized, scheduled),
            (span::PREFILL, scheduled, first_token),
            (span::DECODE, first_token, last_token),
            (span::STREAM, last_token, sent),
        ]
    }

    /// Returns the times of the stages of a call that arrived at `arrived`.
    pub fn timings(&self, arrived: Instant) -> Timings {
        let [tokenize, queue, prefill, decode, stream] =
            self.stages(arrived).map(|(_, begin, end)| to_wire(end - begin));
        Timings {
            tokenize,
            queue,
            prefill,
            decode,
            stream,
            worker_total: to_wire(self.sent - arrived),
            time_to_first_token: to_wire(self.first_token - arrived),
            ..Timings::default()
        }
    }
}

impl RequestTrace {
    /// Starts the span of a call that arrived at `arrived`, as a child of that of its caller.
    pub fn start(caller: &TraceSpan, name: String, arrived: Instant) -> Self {
        let clock = Clock::now();
        let span = caller.child(name, SpanKind::Server, clock.at(arrived));
        Self { span, clock, prefill: OnceLock::new(), decode: OnceLock::new() }
    }

    /// Returns the span of the call.
    pub fn span(&self) -> &TraceSpan {
        &self.span
    }

    /// Adds a step that computed a part of the prompt, or, if the step is `sampled`, one that
    /// generated tokens. Its parent is the span of prefill or decode.
    pub fn step(&self, report: &StepReport, part: &StepPart, sampled: bool) {
        let (name, parent, begin) = match part.first_token {
            None => (span::PREFILL_CHUNK, self.prefill(part.scheduled), part.scheduled),
            Some(first) if sampled => (span::DECODE_STEP, self.decode(first), first),
            Some(_) => return,
        };
        // A step begins with drafts for others, before it is known which requests it takes in.
        let start = self.clock.at(report.began.max(begin));
        // What it drew for others comes after that, and may come after the end of this stage.
        let end = self.clock.at(report.ran);
        parent.stage(name, start, end, || {
            let mut attributes = batch(report);
            attributes.extend([
                count(attribute::CHOICE, part.choice as usize),
                count(attribute::POSITION, part.start),
                count(attribute::TOKENS, part.tokens),
                count(attribute::DRAFTED, part.draft_tokens),
                count(attribute::ACCEPTED, part.generated_tokens.saturating_sub(1)),
            ]);
            attributes
        });
    }

    /// Records the stages of a call that arrived at `arrived`, and ends its span with them.
    pub fn end_with(&self, arrived: Instant, ends: &StageEnds, attributes: &StageAttributes) {
        let at = |instant: Instant| self.clock.at(instant);
        for (name, begin, end) in ends.stages(arrived) {
            match name {
                span::PREFILL => {
                    let prefill = self.prefill(begin);
                    prefill.set(attribute::CACHED_TOKENS, i64::from(attributes.cached_tokens));
                    prefill.end_at(at(end));
                }
                span::DECODE => {
                    let decode = self.decode(begin);
                    decode.set(attribute::DRAFTED, i64::from(attributes.drafted_tokens));
                    decode.set(attribute::ACCEPTED, i64::from(attributes.accepted_tokens));
                    decode.set(attribute::DETOKENIZE, attributes.detokenize_seconds);
                    decode.end_at(at(end));
                }
                name => self.span.stage(name, at(begin), at(end), Vec::new),
            }
        }
        self.span.end_at(at(ends.sent));
    }

    /// Ends the span of a call that failed, at `end`.
    pub fn end(&self, end: Instant) {
        let end = self.clock.at(end);
        for stage in [&self.prefill, &self.decode].into_iter().filter_map(OnceLock::get) {
            stage.end_at(end);
        }
        self.span.end_at(end);
    }

    fn prefill(&self, began: Instant) -> &TraceSpan {
        self.prefill.get_or_init(|| self.child(span::PREFILL, self.clock.at(began)))
    }

    fn decode(&self, began: Instant) -> &TraceSpan {
        self.decode.get_or_init(|| self.child(span::DECODE, self.clock.at(began)))
    }

    fn child(&self, name: &'static str, began: SystemTime) -> TraceSpan {
        self.span.child(name, SpanKind::Internal, began)
    }
}

/// What is known of the stages when a call has ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct StageAttributes {
    /// Number of prompt tokens that were cached.
    pub cached_tokens: u32,
    /// Number of draft tokens that were verified.
    pub drafted_tokens: u32,
    /// How many of them were accepted.
    pub accepted_tokens: u32,
    /// Time that the conversion of tokens to text took, in seconds.
    pub detokenize_seconds: f64,
}

/// Adds a step to the traces of the requests in its batch. If the step is `sampled`, it also gets a
/// trace of its own, linked to them, with its parts.
pub fn record_step(report: &StepReport, worker: &str, sampled: bool) {
    let traces = || report.parts.iter().filter_map(|part| part.tag.downcast_ref::<RequestTrace>());
    for (part, trace) in report.parts.iter().zip(traces()) {
        trace.step(report, part, sampled);
    }
    if !sampled {
        return;
    }
    let clock = Clock::now();
    let mut attributes = batch(report);
    attributes.extend([
        Attribute::new(attribute::WORKER, worker.to_owned()),
        count(attribute::DRAFTED, report.draft_tokens),
        count(attribute::ACCEPTED, report.accepted_tokens),
        count(attribute::GENERATED, report.generated_tokens),
    ]);
    let linked = traces().map(RequestTrace::span);
    let (began, ended) = (clock.at(report.began), clock.at(report.ended));
    let Some(step) = TraceSpan::root(span::STEP, began, attributes, linked) else { return };
    let parts = [
        (span::STEP_DRAFT, report.began, report.drafted),
        (span::STEP_PLAN, report.drafted, report.planned),
        (span::STEP_RUN, report.planned, report.ran),
        (span::STEP_SAMPLE, report.ran, report.ended),
    ];
    for (name, start, end) in parts {
        step.stage(name, clock.at(start), clock.at(end), Vec::new);
    }
    step.end_at(ended);
}

/// The batch of a step.
fn batch(report: &StepReport) -> Vec<Attribute> {
    vec![
        count(attribute::STEP, usize::try_from(report.step).unwrap_or(usize::MAX)),
        count(attribute::BATCH_SEQUENCES, report.sequences),
        count(attribute::BATCH_PREFILL_TOKENS, report.prefill_tokens),
        count(attribute::BATCH_DECODE_TOKENS, report.decode_tokens),
    ]
}

fn count(key: &'static str, count: usize) -> Attribute {
    Attribute::new(key, i64::try_from(count).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// 50 ms at each boundary are in the stage before it alone, as a time and as a span, and the
    /// whole is their sum.
    #[test]
    fn a_delay_at_each_boundary_is_in_one_stage() {
        const DELAY: Duration = Duration::from_millis(50);
        let arrived = Instant::now();
        for delayed in 0..5 {
            let mut at = arrived;
            let ends = [0, 1, 2, 3, 4].map(|stage| {
                at += if stage == delayed { DELAY } else { Duration::ZERO };
                at
            });
            let [tokenized, scheduled, first_token, last_token, sent] = ends;
            let ends = StageEnds { tokenized, scheduled, first_token, last_token, sent };
            let expected =
                [0, 1, 2, 3, 4].map(|s| if s == delayed { DELAY } else { Duration::ZERO });
            let Timings { tokenize, queue, prefill, decode, stream, worker_total, .. } =
                ends.timings(arrived);
            let times = [tokenize, queue, prefill, decode, stream];
            assert_eq!(times, expected.map(to_wire), "{delayed}");
            assert_eq!(worker_total, to_wire(DELAY));
            let spans = ends.stages(arrived);
            assert_eq!(spans.map(|(_, begin, end)| end - begin), expected, "{delayed}");
            let follows = spans.windows(2).all(|pair| pair[0].2 == pair[1].1);
            assert!(follows && spans[0].1 == arrived && spans[4].2 == sent, "{spans:?}");
        }
    }
}

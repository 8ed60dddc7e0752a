//! Which traces are exported, by the variables of OpenTelemetry.

use opentelemetry::{
    Context, KeyValue,
    trace::{Link, SpanKind, TraceId},
};
use opentelemetry_sdk::trace::{Sampler, SamplingResult, ShouldSample};

use crate::names::span;

/// Variable with the name of the sampler.
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
/// Variable with its argument.
const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
/// The names, for the error.
const NAMES: &str = "always_on, always_off, traceidratio, parentbased_always_on, \
                     parentbased_always_off or parentbased_traceidratio";

/// The sampler of requests. Steps of engines have a ratio of their own (`--trace-steps`), so they
/// are exported unless nothing is.
#[derive(Debug, Clone)]
pub(super) struct RequestSampler {
    sampler: Sampler,
    exports_steps: bool,
}

impl RequestSampler {
    /// Reads the variables, which `variable` looks up. By default all traces are exported whose
    /// caller does not export its own.
    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let set = |name: &str| {
            variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        let name = set(SAMPLER).unwrap_or_else(|| "parentbased_always_on".into());
        let ratio = || match set(ARGUMENT) {
            None => Ok(1.0),
            Some(text) => match text.parse::<f64>() {
                Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
                _ => Err(format!("{ARGUMENT} {text}: write a share of traces from 0 to 1")),
            },
        };
        let root = match name.strip_prefix("parentbased_").unwrap_or(&name) {
            "always_on" => Sampler::AlwaysOn,
            "always_off" => Sampler::AlwaysOff,
            "traceidratio" => Sampler::TraceIdRatioBased(ratio()?),
            _ => return Err(format!("{SAMPLER} {name}: this sampler is not known; use {NAMES}")),
        };
        let exports_steps = !matches!(root, Sampler::AlwaysOff);
        let sampler = if name.starts_with("parentbased_") {
            Sampler::ParentBased(Box::new(root))
        } else {
            root
        };
        Ok(Self { sampler, exports_steps })
    }
}

impl ShouldSample for RequestSampler {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let is_step = name == span::STEP && self.exports_steps;
        let sampler = if is_step { &Sampler::AlwaysOn } else { &self.sampler };
        sampler.should_sample(parent, trace, name, kind, attributes, links)
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceState};
    use opentelemetry_sdk::trace::SamplingDecision;

    use super::*;

    fn sampler(name: &str, argument: &str) -> Result<RequestSampler, String> {
        RequestSampler::read(|variable| {
            Some(if variable == SAMPLER { name } else { argument }.to_owned())
        })
    }

    /// Whether a span is exported whose parent was exported, was not, or is absent.
    fn exports(sampler: &RequestSampler, parent: Option<bool>, name: &str) -> bool {
        let trace = TraceId::from_bytes([9; 16]);
        let parent = parent.map(|sampled| {
            let flags = if sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
            let id = SpanId::from_bytes([7; 8]);
            let state = TraceState::default();
            Context::new().with_remote_span_context(SpanContext::new(trace, id, flags, true, state))
        });
        let result =
            sampler.should_sample(parent.as_ref(), trace, name, &SpanKind::Server, &[], &[]);
        result.decision == SamplingDecision::RecordAndSample
    }

    #[test]
    fn the_caller_decides_by_default() {
        let default = sampler("", "").unwrap_or_else(|error| panic!("{error}"));
        assert!(exports(&default, None, "x") && exports(&default, Some(true), "x"));
        assert!(!exports(&default, Some(false), "x"));
        let off = sampler("always_off", "").unwrap_or_else(|error| panic!("{error}"));
        assert!(!exports(&off, Some(true), "x") && !exports(&off, None, span::STEP));
    }

    #[test]
    fn steps_have_a_ratio_of_their_own() {
        let few =
            sampler("parentbased_traceidratio", "0").unwrap_or_else(|error| panic!("{error}"));
        assert!(!exports(&few, None, "x") && exports(&few, None, span::STEP));
    }

    #[test]
    fn what_is_no_sampler_is_refused() {
        let bad = [
            ("traceidratio", "a tenth", "OTEL_TRACES_SAMPLER_ARG a tenth"),
            ("parentbased_traceidratio", "1.5", "OTEL_TRACES_SAMPLER_ARG 1.5"),
            ("traceidratio", "NaN", "OTEL_TRACES_SAMPLER_ARG NaN"),
            ("traceidratio", "-1", "from 0 to 1"),
            ("jaeger_remote", "", "OTEL_TRACES_SAMPLER jaeger_remote"),
            ("parentbased_", "", "parentbased_traceidratio"),
        ];
        for (name, argument, part) in bad {
            let error = sampler(name, argument).err().unwrap_or_default();
            assert!(error.contains(part), "{name} {argument}: {error}");
        }
        // Without a ratio, the argument has no meaning.
        assert!(sampler("always_on", "a tenth").is_ok());
    }
}

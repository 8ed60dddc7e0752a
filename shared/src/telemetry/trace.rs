//! Spans of requests, and the headers that connect the spans of several processes to one trace.
//!
//! Spans are created with the OpenTelemetry API instead of from log spans: the stages of a request
//! are known only after its end, with their times, and the attribute names differ from those of log
//! fields.

use std::{
    borrow::Cow,
    str::FromStr,
    time::{Instant, SystemTime},
};

use opentelemetry::{
    Array, Context, KeyValue, StringValue, Value, global,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{Link, Span as _, SpanBuilder, Status, TraceContextExt, Tracer},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::metadata::{Ascii, KeyRef, MetadataKey, MetadataMap, MetadataValue};

pub use opentelemetry::{KeyValue as Attribute, trace::SpanKind};

/// Name of the tracer, as shown by collectors.
const TRACER: &str = "stoker";

/// Converts instants, in which stages are measured, to the times of spans. All stages of a request
/// use one, so that spans that share an instant share a time.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    instant: Instant,
    time: SystemTime,
}

impl Clock {
    /// Relates the two now.
    pub fn now() -> Self {
        Self { instant: Instant::now(), time: SystemTime::now() }
    }

    /// Returns the time of `instant`.
    pub fn at(&self, instant: Instant) -> SystemTime {
        match instant.checked_duration_since(self.instant) {
            Some(after) => self.time + after,
            None => self.time - self.instant.duration_since(instant),
        }
    }
}

/// An open span. Clones refer to the same span. Without a collector, it only forwards the headers.
#[derive(Debug, Clone, Default)]
pub struct TraceSpan {
    context: Context,
    /// Whether it is exported. Remembered, since what belongs to a span that has ended is exported
    /// too: a step of the engine may be recorded after the response.
    exported: bool,
}

impl TraceSpan {
    /// Returns the span of the caller from `traceparent` and `tracestate`, or an empty one if they
    /// are absent or malformed, since tracing must not fail a request.
    pub fn of_caller(metadata: &MetadataMap) -> Self {
        let propagator = TraceContextPropagator::new();
        let context = propagator.extract_with_context(&Context::new(), &HeaderExtractor(metadata));
        Self { context, exported: false }
    }

    /// Adds the headers of this span to a request to the next process.
    pub fn forward(&self, metadata: &mut MetadataMap) {
        TraceContextPropagator::new().inject_context(&self.context, &mut HeaderInjector(metadata));
    }

    /// Starts a child span that began at `start`.
    pub fn child(
        &self,
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        start: SystemTime,
    ) -> Self {
        let builder = SpanBuilder::from_name(name).with_kind(kind).with_start_time(start);
        let span = global::tracer(TRACER).build_with_context(builder, &self.context);
        let exported = span.is_recording();
        Self { context: self.context.with_span(span), exported }
    }

    /// Records a completed child span. `attributes` is called only if the span is exported.
    pub fn stage(
        &self,
        name: &'static str,
        start: SystemTime,
        end: SystemTime,
        attributes: impl FnOnce() -> Vec<Attribute>,
    ) {
        if self.exported {
            let builder = SpanBuilder::from_name(name)
                .with_kind(SpanKind::Internal)
                .with_start_time(start)
                .with_attributes(attributes());
            let mut span = global::tracer(TRACER).build_with_context(builder, &self.context);
            span.end_with_timestamp(end);
        }
    }

    /// Starts a span with a trace of its own that refers to `linked` spans. `None` if it is not
    /// exported.
    pub fn root<'a>(
        name: &'static str,
        start: SystemTime,
        attributes: Vec<Attribute>,
        linked: impl Iterator<Item = &'a Self>,
    ) -> Option<Self> {
        let link = |span: &Self| Link::with_context(span.context.span().span_context().clone());
        let builder = SpanBuilder::from_name(name)
            .with_kind(SpanKind::Internal)
            .with_start_time(start)
            .with_attributes(attributes)
            .with_links(linked.map(link).collect());
        let span = global::tracer(TRACER).build_with_context(builder, &Context::new());
        let exported = span.is_recording();
        exported.then(|| Self { context: Context::new().with_span(span), exported })
    }

    /// Returns whether the span is exported. If not, attributes need not be computed.
    pub fn is_exported(&self) -> bool {
        self.exported
    }

    /// Returns whether the trace that the span belongs to is exported, here or by the caller.
    pub fn is_sampled(&self) -> bool {
        self.context.span().span_context().is_sampled()
    }

    /// Sets an attribute, for instance one of [`crate::names::attribute`].
    pub fn set<V: Into<Value>>(&self, key: &'static str, value: V) {
        self.context.span().set_attribute(KeyValue::new(key, value));
    }

    /// Sets an attribute whose value is a list of strings.
    pub fn set_list(&self, key: &'static str, values: impl IntoIterator<Item = &'static str>) {
        let values: Vec<StringValue> = values.into_iter().map(Into::into).collect();
        self.set(key, Value::Array(Array::String(values)));
    }

    /// Renames the span, once its name is known.
    pub fn rename(&self, name: String) {
        self.context.span().update_name(name);
    }

    /// Marks the span as failed.
    pub fn fail(&self, message: String) {
        self.context.span().set_status(Status::error(message));
    }

    /// Ends the span now. Dropping the last clone ends it too.
    pub fn end(&self) {
        self.context.span().end();
    }

    /// Ends the span at `time`.
    pub fn end_at(&self, time: SystemTime) {
        self.context.span().end_with_timestamp(time);
    }

    /// Returns the trace id in hexadecimal, for logs, or `None` outside a trace.
    pub fn trace_id(&self) -> Option<String> {
        let span = self.context.span();
        let context = span.span_context();
        context.is_valid().then(|| context.trace_id().to_string())
    }
}

struct HeaderExtractor<'a>(&'a MetadataMap);

impl Extractor for HeaderExtractor<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        let names = self.0.keys().filter_map(|key| match key {
            KeyRef::Ascii(key) => Some(key.as_str()),
            KeyRef::Binary(_) => None,
        });
        names.collect()
    }
}

struct HeaderInjector<'a>(&'a mut MetadataMap);

impl Injector for HeaderInjector<'_> {
    fn set(&mut self, key: &str, value: String) {
        let key = MetadataKey::<Ascii>::from_str(key);
        if let (Ok(key), Ok(value)) = (key, value.parse::<MetadataValue<Ascii>>())
            && !value.is_empty()
        {
            self.0.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn forwarded(received: &[(&'static str, &str)]) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        for (key, value) in received {
            metadata.insert(*key, value.parse().unwrap());
        }
        let mut sent = MetadataMap::new();
        let now = SystemTime::now();
        TraceSpan::of_caller(&metadata).child("x", SpanKind::Server, now).forward(&mut sent);
        sent
    }

    #[test]
    fn headers_are_forwarded_without_a_collector() {
        let sent = forwarded(&[("traceparent", PARENT), ("tracestate", "a=1,b=2")]);
        assert_eq!(sent.get("traceparent").unwrap(), PARENT);
        assert_eq!(sent.get("tracestate").unwrap(), "a=1,b=2");
    }

    #[test]
    fn malformed_headers_are_ignored() {
        for bad in ["", "x", "00-0-0-01", "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"]
        {
            assert!(forwarded(&[("traceparent", bad)]).is_empty(), "{bad:?}");
        }
        assert!(forwarded(&[]).is_empty());
    }
}

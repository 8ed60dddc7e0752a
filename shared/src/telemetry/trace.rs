//! Spans of requests, and the headers that join those of several processes to one trace.
//!
//! Made with OpenTelemetry's own interface rather than out of log spans: a request's stages are known only
//! when it is over, with their times, and the names of attributes are not those that read well in a log.

use std::{
    borrow::Cow,
    str::FromStr,
    time::{Duration, SystemTime},
};

use opentelemetry::{
    Array, Context, KeyValue, StringValue, Value, global,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{Span as _, SpanBuilder, Status, TraceContextExt, Tracer},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::metadata::{Ascii, KeyRef, MetadataKey, MetadataMap, MetadataValue};

pub use opentelemetry::trace::SpanKind;

/// Who made the spans, as a collector shows it.
const TRACER: &str = "stoker";

/// A span under way; clones are the same span. Without a collector it only carries the headers on.
#[derive(Debug, Clone, Default)]
pub struct TraceSpan(Context);

impl TraceSpan {
    /// The span that the caller told about in `traceparent` and `tracestate`; none if they are absent or
    /// malformed, since a caller's tracing must not fail its request.
    pub fn of_caller(metadata: &MetadataMap) -> Self {
        let propagator = TraceContextPropagator::new();
        Self(propagator.extract_with_context(&Context::new(), &Received(metadata)))
    }

    /// Tells the next process about this span.
    pub fn forward(&self, metadata: &mut MetadataMap) {
        TraceContextPropagator::new().inject_context(&self.0, &mut Sent(metadata));
    }

    /// A span below this one that began at `start`.
    pub fn child(
        &self,
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        start: SystemTime,
    ) -> Self {
        let builder = SpanBuilder::from_name(name).with_kind(kind).with_start_time(start);
        let span = global::tracer(TRACER).build_with_context(builder, &self.0);
        Self(self.0.with_span(span))
    }

    /// A stage below this span that is over. Answers when it ended, for the next one.
    pub fn stage(&self, name: &'static str, start: SystemTime, took: Duration) -> SystemTime {
        let end = start + took;
        if self.is_recording() {
            let builder =
                SpanBuilder::from_name(name).with_kind(SpanKind::Internal).with_start_time(start);
            let mut span = global::tracer(TRACER).build_with_context(builder, &self.0);
            span.end_with_timestamp(end);
        }
        end
    }

    /// Whether a collector will hear of this span: if not, attributes need not be made.
    pub fn is_recording(&self) -> bool {
        self.0.span().is_recording()
    }

    /// Sets attributes, for instance of [`super::names::attribute`].
    pub fn set<V: Into<Value>>(&self, key: &'static str, value: V) {
        self.0.span().set_attribute(KeyValue::new(key, value));
    }

    /// Sets an attribute that is a list of texts.
    pub fn set_list(&self, key: &'static str, values: impl IntoIterator<Item = &'static str>) {
        let values: Vec<StringValue> = values.into_iter().map(Into::into).collect();
        self.set(key, Value::Array(Array::String(values)));
    }

    /// Gives it its name, once that is known.
    pub fn rename(&self, name: String) {
        self.0.span().update_name(name);
    }

    /// Marks it as failed.
    pub fn fail(&self, message: String) {
        self.0.span().set_status(Status::error(message));
    }

    /// Ends it now. Dropping the last clone does so too.
    pub fn end(&self) {
        self.0.span().end();
    }

    /// The id of the trace in hexadecimal, for logs; `None` outside of any trace.
    pub fn trace_id(&self) -> Option<String> {
        let span = self.0.span();
        let context = span.span_context();
        context.is_valid().then(|| context.trace_id().to_string())
    }
}

struct Received<'a>(&'a MetadataMap);

impl Extractor for Received<'_> {
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

struct Sent<'a>(&'a mut MetadataMap);

impl Injector for Sent<'_> {
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
    fn without_a_collector_headers_are_carried_on() {
        let sent = forwarded(&[("traceparent", PARENT), ("tracestate", "a=1,b=2")]);
        assert_eq!(sent.get("traceparent").unwrap(), PARENT);
        assert_eq!(sent.get("tracestate").unwrap(), "a=1,b=2");
    }

    #[test]
    fn what_is_malformed_is_no_parent_and_no_error() {
        for bad in ["", "x", "00-0-0-01", "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"]
        {
            assert!(forwarded(&[("traceparent", bad)]).is_empty(), "{bad:?}");
        }
        assert!(forwarded(&[]).is_empty());
    }
}

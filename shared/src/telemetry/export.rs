//! Exports spans to an OpenTelemetry collector, in batches and in the background. A collector that
//! is down or slow causes dropped spans, which are counted, but does not delay requests.

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use opentelemetry::{Context, global};
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    resource::{EnvResourceDetector, ResourceDetector},
    trace::{
        BatchSpanProcessor, OTEL_BSP_MAX_QUEUE_SIZE, OTEL_BSP_MAX_QUEUE_SIZE_DEFAULT,
        SdkTracerProvider, Span, SpanData, SpanExporter, SpanProcessor,
    },
};
use prometheus_client::metrics::counter::Counter;
use tonic::codegen::http::{HeaderName, Uri};

use super::sampler::RequestSampler;
use crate::{VERSION, host};

/// Time limit for exporting the remaining spans at shutdown.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Environment variables of OpenTelemetry with the endpoint of the collector, the more specific one
/// first.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];

/// Variables with headers for the collector.
const HEADERS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];
/// Variables with a number, times in milliseconds.
const NUMBERS: [&str; 6] = [
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_EXPORT_TIMEOUT",
    OTEL_BSP_MAX_QUEUE_SIZE,
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
];

/// The exporter of spans.
pub(super) struct Exporter {
    provider: SdkTracerProvider,
    dropped: Counter,
}

impl Exporter {
    /// Starts the export if `--otlp-endpoint` or the environment configures it. Samplers, batches,
    /// headers, timeouts and resource attributes are configured by OTEL_* variables.
    pub(super) fn start(
        service: &'static str,
        endpoint: Option<&str>,
    ) -> Result<Option<Self>, String> {
        let (origin, endpoint) = match (endpoint, variable(&ENDPOINTS)) {
            _ if disabled() => return Ok(None),
            (Some(flag), _) => ("--otlp-endpoint", flag.to_owned()),
            (None, Some(found)) => found,
            (None, None) => return Ok(None),
        };
        if let Some((name, protocol)) = variable(&PROTOCOLS)
            && protocol != "grpc"
        {
            return Err(format!("{name} {protocol}: only grpc is supported, usually on port 4317"));
        }
        let url = collector_url(&endpoint).map_err(|why| format!("{origin} {endpoint}: {why}"))?;
        let sampler = RequestSampler::read(|name| env::var(name).ok())?;
        check_variables(|name| env::var(name).ok())?;
        let exporter = OtlpExporter::builder().with_tonic().with_endpoint(&url).build();
        let exporter = exporter.map_err(|error| format!("{origin} {url}: {error}"))?;

        let dropped = Counter::default();
        let waiting = Arc::new(AtomicUsize::new(0));
        let counted = CountedExporter {
            exporter,
            url: url.clone(),
            waiting: Arc::clone(&waiting),
            dropped: dropped.clone(),
            failing: AtomicBool::new(false),
        };
        let processor = CountedProcessor {
            processor: BatchSpanProcessor::builder(counted).build(),
            capacity: queue_size(),
            waiting,
            dropped: dropped.clone(),
        };
        let provider = SdkTracerProvider::builder()
            .with_resource(resource(service))
            .with_sampler(sampler)
            .with_span_processor(processor)
            .build();
        global::set_tracer_provider(provider.clone());
        tracing::info!(collector = url, "traces");
        Ok(Some(Self { provider, dropped }))
    }

    /// Returns the counter of spans that did not reach the collector.
    pub(super) fn dropped(&self) -> Counter {
        self.dropped.clone()
    }

    /// Exports the remaining spans, for at most [`FLUSH_TIMEOUT`].
    pub(super) async fn flush(self) {
        let provider = self.provider;
        let flushed =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT));
        if let Ok(Err(error)) = flushed.await {
            tracing::warn!(%error, "the last spans did not reach the collector");
        }
    }
}

/// Returns the URL of a collector's gRPC receiver from what the operator wrote.
fn collector_url(endpoint: &str) -> Result<String, &'static str> {
    let url = if endpoint.contains("://") { endpoint } else { &format!("http://{endpoint}") };
    let Some(rest) = url.strip_prefix("http://") else {
        return Err("write it as http://host:port; TLS is not supported");
    };
    let (authority, path) = rest.split_once(['/', '?', '#']).unwrap_or((rest, ""));
    if !path.is_empty() || rest.contains(['?', '#']) {
        return Err(
            "write it as http://host:port, without a path: gRPC has none, and a path like \
                    /v1/traces belongs to the HTTP receiver",
        );
    }
    if authority.contains('@') {
        return Err("write it as http://host:port; credentials go into OTEL_EXPORTER_OTLP_HEADERS");
    }
    match url.parse::<Uri>() {
        Ok(uri) if uri.host().is_some_and(|host| !host.is_empty()) => Ok(url.to_owned()),
        _ => Err("write it as http://host:port"),
    }
}

/// Checks those variables of OpenTelemetry that its SDK ignores, with a log line at most, if they
/// are wrong.
fn check_variables(variable: impl Fn(&str) -> Option<String>) -> Result<(), String> {
    let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
    for name in NUMBERS {
        if let Some(value) = set(name)
            && value.trim().parse::<u64>().is_err()
        {
            return Err(format!("{name} {value}: write a whole number"));
        }
    }
    for name in HEADERS {
        let Some(value) = set(name) else { continue };
        for header in value.split(',').filter(|header| !header.trim().is_empty()) {
            let named = header.split_once('=').is_some_and(|(key, value)| {
                HeaderName::try_from(key.trim()).is_ok()
                    && value.trim().bytes().all(|b| matches!(b, b' '..=b'~'))
            });
            if !named {
                // The value may be a secret.
                let key = header.split('=').next().unwrap_or_default().trim();
                return Err(format!(
                    "{name}: the header `{key}` is not of the form key=value; separate headers by \
                     commas, and write other characters as %XX"
                ));
            }
        }
    }
    Ok(())
}

/// Returns the first of these variables that is not empty, and its value.
fn variable<const N: usize>(names: &[&'static str; N]) -> Option<(&'static str, String)> {
    let set =
        |name: &&'static str| env::var(name).ok().map(|value| (*name, value.trim().to_owned()));
    names.iter().filter_map(set).find(|(_, value)| !value.is_empty())
}

fn disabled() -> bool {
    let is = |name, value: &str| env::var(name).is_ok_and(|v| v.eq_ignore_ascii_case(value));
    is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none")
}

fn queue_size() -> usize {
    let size = env::var(OTEL_BSP_MAX_QUEUE_SIZE).ok().and_then(|size| size.parse().ok());
    size.unwrap_or(OTEL_BSP_MAX_QUEUE_SIZE_DEFAULT)
}

/// Returns the resource attributes. The service name is OTEL_SERVICE_NAME, else that of
/// OTEL_RESOURCE_ATTRIBUTES, else `service`.
fn resource(service: &'static str) -> Resource {
    let version = opentelemetry::KeyValue::new("service.version", VERSION);
    // By which stores know that the clocks of two processes are one.
    let host = opentelemetry::KeyValue::new("host.name", host::name());
    let own = Resource::builder().with_attributes([version, host]);
    let named = variable(&["OTEL_SERVICE_NAME"]).is_some()
        || EnvResourceDetector::new().detect().get(&"service.name".into()).is_some();
    if named { own.build() } else { own.with_service_name(service).build() }
}

/// Accepts at most as many spans as the queue holds, so that the queue never drops a span
/// uncounted.
#[derive(Debug)]
struct CountedProcessor {
    processor: BatchSpanProcessor,
    capacity: usize,
    /// Number of spans in the queue or in the batch that is being sent.
    waiting: Arc<AtomicUsize>,
    dropped: Counter,
}

impl SpanProcessor for CountedProcessor {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.processor.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.capacity {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.dropped.inc();
            return;
        }
        self.processor.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

/// Counts spans that could not be sent, and logs every outage once.
#[derive(Debug)]
struct CountedExporter {
    exporter: OtlpExporter,
    url: String,
    waiting: Arc<AtomicUsize>,
    dropped: Counter,
    failing: AtomicBool,
}

impl SpanExporter for CountedExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let sent = self.exporter.export(batch).await;
        self.waiting.fetch_sub(count, Ordering::Relaxed);
        let failed = sent.is_err();
        let changed = self.failing.swap(failed, Ordering::Relaxed) != failed;
        if let Err(error) = &sent {
            self.dropped.inc_by(count as u64);
            if changed {
                tracing::warn!(collector = self.url, %error, "the collector is unreachable: spans are dropped");
            }
        } else if changed {
            tracing::info!(collector = self.url, "spans are sent again");
        }
        sent
    }

    fn shutdown(&self) -> OTelSdkResult {
        self.exporter.shutdown()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collectors_are_hosts_and_ports() {
        for (written, url) in [
            ("collector:4317", "http://collector:4317"),
            ("http://collector:4317", "http://collector:4317"),
            ("http://[::1]:4317/", "http://[::1]:4317/"),
        ] {
            assert_eq!(collector_url(written), Ok(url.to_owned()));
        }
        for (written, part) in [
            ("https://collector:4317", "TLS is not supported"),
            ("grpc://collector:4317", "http://host:port"),
            ("http://collector:4318/v1/traces", "without a path"),
            ("collector:4317?x=1", "without a path"),
            ("http://user:secret@collector:4317", "OTEL_EXPORTER_OTLP_HEADERS"),
            ("http://", "http://host:port"),
            ("http://a b:1", "http://host:port"),
        ] {
            let error = collector_url(written).err().unwrap_or_default();
            assert!(error.contains(part), "{written}: {error}");
        }
    }

    #[test]
    fn what_the_sdk_would_ignore_is_refused() {
        let check = |name: &'static str, value: &'static str| {
            check_variables(|asked| (asked == name).then(|| value.to_owned()))
        };
        let headers = "OTEL_EXPORTER_OTLP_HEADERS";
        assert_eq!(check(headers, "x-key=a%20b, y=1 ,"), Ok(()));
        assert_eq!(check("OTEL_BSP_SCHEDULE_DELAY", " 500 "), Ok(()));
        assert_eq!(check("OTEL_BSP_SCHEDULE_DELAY", ""), Ok(()));
        for (name, value, part) in [
            (headers, "secret", "header `secret` is not of the form"),
            (headers, "a b=secret", "`a b`"),
            (headers, "x=caf\u{e9}", "`x`"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "OTEL_EXPORTER_OTLP_TIMEOUT 10s: write a whole"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "-1", "OTEL_BSP_MAX_QUEUE_SIZE -1"),
        ] {
            let error = check(name, value).err().unwrap_or_default();
            assert!(error.contains(part), "{name} {value}: {error}");
            assert!(part.contains("secret") || !error.contains("secret"), "{error}");
        }
    }
}

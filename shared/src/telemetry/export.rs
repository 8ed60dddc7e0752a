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

use crate::VERSION;

/// Time limit for exporting the remaining spans at shutdown.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Environment variables of OpenTelemetry with the endpoint of the collector, the more specific one
/// first.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];

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
        let url = if endpoint.contains("://") { endpoint } else { format!("http://{endpoint}") };
        if !url.starts_with("http://") {
            return Err(format!(
                "{origin} {url}: write it as http://host:port; TLS is not supported"
            ));
        }
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
    let own = Resource::builder().with_attribute(version);
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

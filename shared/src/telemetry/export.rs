//! Sends spans to an OpenTelemetry collector, in batches, beside the requests: a collector that is down or
//! slow costs spans, which are counted, and no request's time.

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

/// What is left at the end has this long to reach the collector.
const FLUSH: Duration = Duration::from_secs(3);

/// Where OpenTelemetry's variables say that the collector is, the more special one first.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];

/// Spans on their way to a collector.
pub(super) struct Exporter {
    provider: SdkTracerProvider,
    dropped: Counter,
}

impl Exporter {
    /// Starts to export, if `--otlp-endpoint` or the environment asks for it. Samplers, batches, headers,
    /// timeouts and resource attributes are as OTEL_* variables say.
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
            return Err(format!(
                "{name} {protocol}: only grpc is spoken here, usually on port 4317"
            ));
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

    /// Counts the spans that did not reach the collector.
    pub(super) fn dropped(&self) -> Counter {
        self.dropped.clone()
    }

    /// Sends what is left, for [`FLUSH`] at most.
    pub(super) async fn flush(self) {
        let provider = self.provider;
        let flushed = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH));
        if let Ok(Err(error)) = flushed.await {
            tracing::warn!(%error, "the last spans did not reach the collector");
        }
    }
}

/// The first of these variables that says anything, and what it says.
fn variable<const N: usize>(names: &[&'static str; N]) -> Option<(&'static str, String)> {
    let set =
        |name: &&'static str| env::var(name).ok().map(|value| (*name, value.trim().to_owned()));
    names.iter().filter_map(set).find(|(_, value)| !value.is_empty())
}

fn disabled() -> bool {
    let says = |name, what: &str| env::var(name).is_ok_and(|v| v.eq_ignore_ascii_case(what));
    says("OTEL_SDK_DISABLED", "true") || says("OTEL_TRACES_EXPORTER", "none")
}

fn queue_size() -> usize {
    let size = env::var(OTEL_BSP_MAX_QUEUE_SIZE).ok().and_then(|size| size.parse().ok());
    size.unwrap_or(OTEL_BSP_MAX_QUEUE_SIZE_DEFAULT)
}

/// Who this is. OTEL_SERVICE_NAME wins, then OTEL_RESOURCE_ATTRIBUTES, then `service`.
fn resource(service: &'static str) -> Resource {
    let version = opentelemetry::KeyValue::new("service.version", VERSION);
    let own = Resource::builder().with_attribute(version);
    let named = variable(&["OTEL_SERVICE_NAME"]).is_some()
        || EnvResourceDetector::new().detect().get(&"service.name".into()).is_some();
    if named { own.build() } else { own.with_service_name(service).build() }
}

/// Takes no more spans than the queue holds, so that the queue itself never has to drop one uncounted.
#[derive(Debug)]
struct CountedProcessor {
    processor: BatchSpanProcessor,
    capacity: usize,
    /// In the queue or in the batch that is being sent.
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

/// Counts what could not be sent, and says so once an outage.
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
        let news = self.failing.swap(failed, Ordering::Relaxed) != failed;
        if let Err(error) = &sent {
            self.dropped.inc_by(count as u64);
            if news {
                tracing::warn!(collector = self.url, %error, "spans are dropped until it answers");
            }
        } else if news {
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

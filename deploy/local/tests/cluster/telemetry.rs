//! Telemetry: one trace over client, router and worker, and metrics of successful and failed
//! requests.

use std::{net::SocketAddr, process::Command, time::Duration};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind},
};
use stoker_proto::v1::GenerateRequest;
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, transport::Server};

use crate::support::{Metrics, Process, complete, inference, program, read, request, scrape};

/// Limit of every wait, far longer than any of them takes: a test that reaches it fails.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A span and the resource of the process that exported it.
#[derive(Debug, Clone)]
struct ExportedSpan {
    resource: Vec<KeyValue>,
    span: Span,
}

impl ExportedSpan {
    fn attribute(&self, key: &str) -> Option<String> {
        find(&self.span.attributes, key)
    }
}

fn find(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    Some(match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        other => format!("{other:?}"),
    })
}

/// An OTLP collector on a real socket.
struct Collector {
    address: SocketAddr,
    spans: mpsc::UnboundedReceiver<ExportedSpan>,
}

struct SpanReceiver(mpsc::UnboundedSender<ExportedSpan>);

#[tonic::async_trait]
impl TraceService for SpanReceiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if request.metadata().get("x-token").is_none_or(|token| token != "secret") {
            return Err(Status::unauthenticated("OTEL_EXPORTER_OTLP_HEADERS did not arrive"));
        }
        for from in request.into_inner().resource_spans {
            let resource = from.resource.unwrap().attributes;
            for span in from.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                self.0.send(ExportedSpan { resource: resource.clone(), span }).unwrap();
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, spans) = mpsc::unbounded_channel();
        let server = Server::builder()
            .add_service(TraceServiceServer::new(SpanReceiver(sender)))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        Self { address, spans }
    }

    /// Receives spans until `enough` returns `true` for them.
    async fn until(&mut self, enough: impl Fn(&[ExportedSpan]) -> bool) -> Vec<ExportedSpan> {
        let mut spans = Vec::new();
        while !enough(&spans) {
            let next = timeout(TEST_TIMEOUT, self.spans.recv()).await;
            spans.push(next.unwrap_or_else(|_| panic!("no more came after {spans:#?}")).unwrap());
        }
        spans
    }
}

/// The command of a program that exports spans after 50 ms.
fn traced(name: &str, arguments: &[&str]) -> Command {
    let mut command = program(name);
    command.args(arguments).env("OTEL_BSP_SCHEDULE_DELAY", "50");
    command.env("OTEL_EXPORTER_OTLP_HEADERS", "x-token=secret");
    command
}

fn from_client(traceparent: &'static str) -> Request<GenerateRequest> {
    let mut request = Request::new(request("Once upon a time", 1, 8));
    request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    request.metadata_mut().insert("tracestate", "vendor=1".parse().unwrap());
    request
}

const TRACE: [u8; 16] = [
    0x0a, 0xf7, 0x65, 0x19, 0x16, 0xcd, 0x43, 0xdd, 0x84, 0x48, 0xeb, 0x21, 0x1c, 0x80, 0x31, 0x9c,
];
const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const NOT_SAMPLED: &str = "00-11111111111111111111111111111111-b7ad6b7169203331-00";

#[tokio::test(flavor = "multi_thread")]
async fn client_router_and_worker_are_one_trace() {
    let mut collector = Collector::start().await;
    let endpoint = format!("http://{}", collector.address);
    let mut worker = traced("stoker-worker", &["--model", "storyteller", "--worker-id", "w"]);
    // Configured by the environment alone.
    worker.env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint).env("OTEL_SERVICE_NAME", "my-worker");
    worker.env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test");
    let worker = Process::spawn(worker);
    // Configured by a flag, which overrides the environment.
    let workers = ["--workers", &worker.address, "--otlp-endpoint", &endpoint];
    let mut router = traced("stoker-router", &workers);
    router.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    let router = Process::spawn(router);

    let mut client = inference(&router.address).await;
    let ready = complete(&mut client, request("Once", 1, 1)).await;
    assert!(ready.is_ok() || ready.is_err_and(|status| status.code() == Code::Unavailable));
    // The router may not have connected to its worker yet.
    while client.generate(request("Once", 1, 1)).await.is_err() {
        tokio::task::yield_now().await;
    }
    let not_sampled = client.generate(from_client(NOT_SAMPLED)).await.unwrap();
    read(not_sampled.into_inner(), || ()).await.unwrap();
    let sampled = client.generate(from_client(SAMPLED)).await.unwrap();
    let completion = read(sampled.into_inner(), || ()).await.unwrap();

    let in_trace = |spans: &[ExportedSpan]| -> Vec<ExportedSpan> {
        spans.iter().filter(|t| t.span.trace_id == TRACE).cloned().collect()
    };
    let all = collector.until(|spans| in_trace(spans).len() >= 8).await;
    let spans = in_trace(&all);
    let names: Vec<_> = spans.iter().map(|t| t.span.name.as_str()).collect();
    let one = |name: &str, kind: SpanKind, parent: &[u8]| -> &ExportedSpan {
        let kind = kind as i32;
        let mut found = spans
            .iter()
            .filter(|t| t.span.name == name && t.span.kind == kind)
            .filter(|t| t.span.parent_span_id == parent);
        let one = found.next().unwrap_or_else(|| panic!("no {name} in {names:?}"));
        assert!(found.next().is_none(), "{name} twice in {names:?}");
        one
    };
    let root = [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31];
    let at_router = one("text_completion storyteller", SpanKind::Server, &root);
    one("admission", SpanKind::Internal, &at_router.span.span_id);
    let attempt = one("attempt", SpanKind::Client, &at_router.span.span_id);
    let at_worker = one("text_completion storyteller", SpanKind::Server, &attempt.span.span_id);
    let mut end = at_worker.span.start_time_unix_nano;
    for stage in ["tokenize", "queue", "prefill", "decode"] {
        let stage = one(stage, SpanKind::Internal, &at_worker.span.span_id);
        assert_eq!(stage.span.start_time_unix_nano, end, "stages follow each other");
        end = stage.span.end_time_unix_nano;
    }

    for span in &spans {
        assert_eq!(span.span.trace_state, "vendor=1");
    }
    for (span, key, value) in [
        (at_router, "gen_ai.operation.name", "text_completion"),
        (at_router, "gen_ai.request.id", completion.accepted.request_id.as_str()),
        (at_router, "gen_ai.request.model", "storyteller"),
        (at_router, "gen_ai.usage.output_tokens", "8"),
        (at_router, "rpc.response.status_code", "OK"),
        (attempt, "stoker.worker.id", worker.address.as_str()),
        (attempt, "stoker.attempt", "1"),
        (at_worker, "gen_ai.request.id", completion.accepted.request_id.as_str()),
        (at_worker, "stoker.worker.id", "w"),
        (at_worker, "gen_ai.usage.output_tokens", "8"),
    ] {
        assert_eq!(span.attribute(key).as_deref(), Some(value), "{key} of {}", span.span.name);
    }
    assert!(at_router.attribute("gen_ai.latency.time_to_first_token").is_some());
    assert_eq!(find(&at_router.resource, "service.name").as_deref(), Some("stoker-router"));
    assert_eq!(find(&at_worker.resource, "service.name").as_deref(), Some("my-worker"));
    let environment = find(&at_worker.resource, "deployment.environment.name");
    assert_eq!(environment.as_deref(), Some("test"));

    // Prompts are not exported, and neither are unsampled traces.
    assert!(!format!("{all:?}").contains("Once upon"), "a prompt was exported");
    assert!(all.iter().all(|t| t.span.trace_id != [0x11; 16]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_never_responds_costs_only_spans() {
    // The system accepts connections, and nothing reads from them.
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = deaf.local_addr().unwrap().to_string();
    let arguments = ["--model", "storyteller", "--otlp-endpoint", &endpoint];
    let mut command = traced("stoker-worker", &arguments);
    command.args(["--metrics-listen", "127.0.0.1:0"]);
    command.env("OTEL_BSP_MAX_QUEUE_SIZE", "2").env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1");
    let worker = Process::spawn(command);
    let mut client = inference(&worker.address).await;
    for _ in 0..5 {
        complete(&mut client, request("Once", 1, 2)).await.unwrap();
    }
    let dropped = |metrics: &Metrics| metrics["stoker_spans_dropped_total"] >= 1.0;
    wait_for_metrics(&worker, dropped).await;
    worker.terminate();
    let ended = tokio::task::spawn_blocking(|| worker.wait());
    assert_eq!(timeout(TEST_TIMEOUT, ended).await.unwrap().unwrap().code(), Some(0));
}

#[test]
fn an_unsupported_collector_is_refused_at_startup() {
    for (name, value, expected) in [
        ("STOKER_OTLP_ENDPOINT", "https://a:1", "--otlp-endpoint https://a:1: "),
        (
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "http/protobuf",
            "OTEL_EXPORTER_OTLP_PROTOCOL http/protobuf: ",
        ),
    ] {
        let mut command = program("stoker-router");
        command.args(["--workers", "a:1"]);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1").env(name, value);
        let output = command.output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

/// Scrapes until the metrics satisfy `wanted`: a request is counted shortly after its last event.
async fn wait_for_metrics(process: &Process, wanted: impl Fn(&Metrics) -> bool) -> Metrics {
    let mut last = Metrics::new();
    let reads = async {
        loop {
            last = scrape(process).await;
            if wanted(&last) {
                break;
            }
        }
    };
    let in_time = timeout(TEST_TIMEOUT, reads).await.is_ok();
    assert!(in_time, "{last:#?}");
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_successful_and_failed_requests() {
    let any = ["--metrics-listen", "127.0.0.1:0"];
    let worker = ["--model", "storyteller", "--worker-id", "w"];
    let worker = Process::start("stoker-worker", &[&worker[..], &any].concat());
    let router = ["--workers", worker.address.as_str()];
    let router = Process::start("stoker-router", &[&router[..], &any].concat());
    wait_for_metrics(&router, |m| m["stoker_router_workers{state=\"live\"}"] == 1.0).await;

    let mut client = inference(&router.address).await;
    let mut prompt = 0;
    for seed in 0..3 {
        let completion = complete(&mut client, request("Once upon a time", seed, 8)).await.unwrap();
        prompt += completion.accepted.prompt_tokens;
    }
    let elsewhere = GenerateRequest { model: "other".into(), ..request("Once", 1, 8) };
    let status = complete(&mut client, elsewhere).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(
        complete(&mut client, request("", 1, 8)).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let mut malformed = Request::new(request("Once", 1, 8));
    malformed.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    assert_eq!(client.generate(malformed).await.unwrap_err().code(), Code::InvalidArgument);
    // A request that its client cancels.
    let mut left = client.generate(request("Once", 1, 1000)).await.unwrap().into_inner();
    left.message().await.unwrap();
    drop(left);

    let ended = |m: &Metrics, code: &str| {
        let sum = m.iter().filter(|(name, _)| name.starts_with("stoker_router_requests_total{"));
        sum.filter(|(name, _)| name.contains(code)).map(|(_, value)| value).sum::<f64>()
    };
    // Samples are read one after the other while the last request ends, so that it may be counted
    // both as ended and as in flight.
    let none = |m: &Metrics| m["stoker_router_requests_in_flight"] == 0.0;
    let router = wait_for_metrics(&router, |m| ended(m, "code=") == 7.0 && none(m)).await;
    for (name, value) in [
        ("stoker_router_requests_total{model=\"storyteller\",code=\"OK\"}", 3.0),
        ("stoker_router_requests_total{model=\"storyteller\",code=\"CANCELLED\"}", 1.0),
        ("stoker_router_requests_total{model=\"(unknown)\",code=\"NOT_FOUND\"}", 1.0),
        ("stoker_router_requests_total{model=\"(unknown)\",code=\"INVALID_ARGUMENT\"}", 2.0),
        ("stoker_router_rejections_total{reason=\"UNKNOWN_MODEL\"}", 1.0),
        ("stoker_router_rejections_total{reason=\"INVALID\"}", 2.0),
        ("stoker_router_requests_in_flight", 0.0),
        ("stoker_router_requests_queued", 0.0),
        ("stoker_router_request_duration_seconds_count{model=\"storyteller\"}", 3.0),
        ("stoker_router_request_duration_seconds_bucket{le=\"+Inf\",model=\"storyteller\"}", 3.0),
        ("stoker_spans_dropped_total", 0.0),
    ] {
        assert_eq!(router.get(name), Some(&value), "{name} in {router:#?}");
    }
    assert!(router["stoker_router_generated_tokens_total{model=\"storyteller\"}"] >= 24.0);
    assert!(
        router["stoker_router_time_to_first_token_seconds_count{model=\"storyteller\"}"] >= 3.0
    );

    let of = |name: &str, more: &str| format!("{name}{{model=\"storyteller\",worker=\"w\"{more}}}");
    let over = of("stoker_worker_requests_total", ",outcome=\"CANCELLED\"");
    let idle = of("stoker_worker_sequences_running", "");
    let worker = wait_for_metrics(&worker, |m| m.get(&over) == Some(&1.0) && m[&idle] == 0.0).await;
    for (name, value) in [
        (of("stoker_worker_requests_total", ",outcome=\"length\""), 3.0),
        (of("stoker_worker_queue_time_seconds_count", ""), 3.0),
        (of("stoker_worker_kv_cache_usage_ratio", ""), 0.0),
        (of("stoker_worker_preemptions_total", ""), 0.0),
    ] {
        assert_eq!(worker.get(&name), Some(&value), "{name} in {worker:#?}");
    }
    assert!(worker[&of("stoker_worker_prompt_tokens_total", "")] >= f64::from(prompt));
    let steps = worker[&of("stoker_worker_steps_total", "")];
    assert!(steps >= 24.0 && steps == worker[&of("stoker_worker_step_duration_seconds_count", "")]);
}

#[test]
fn a_metrics_port_in_use_is_reported_by_flag() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let mut command = program("stoker-router");
    let output = command.args(["--workers", "a:1", "--metrics-listen", &taken]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains(&format!("--metrics-listen {taken}: the port is in use")), "{error}");
}

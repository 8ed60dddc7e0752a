//! Telemetry: one trace over client, router and worker, and metrics of successful and failed
//! requests.

use std::time::Duration;

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use stoker_proto::v1::{GenerateRequest, generate_response::Event};
use tokio::{net::TcpListener, time::timeout};
use tonic::{Code, Request};

use crate::{
    metrics::wait_for_metrics,
    otlp_collector::{Collector, ExportedSpan, find, traced},
    support::{Metrics, Process, complete, inference, program, read, request},
};

/// Limit of every wait, far longer than any of them takes: a test that reaches it fails.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

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
    // Every step is traced.
    let arguments = ["--model", "storyteller", "--worker-id", "w", "--trace-steps", "1"];
    let mut worker = traced("stoker-worker", &arguments);
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
    // Two processes export their spans on their own; the last one of each is its server span.
    let servers = |spans: &[ExportedSpan]| {
        spans.iter().filter(|t| t.span.kind == SpanKind::Server as i32).count()
    };
    // The engine's thread records a step after the response may have ended.
    let is_last_step = |t: &ExportedSpan, spans: &[ExportedSpan]| {
        let linked = |id| spans.iter().any(|t| t.span.trace_id == TRACE && t.span.span_id == id);
        t.span.name == "engine step" && t.span.links.iter().any(|l| linked(l.span_id.clone()))
    };
    let all = collector
        .until(|spans| {
            let steps = in_trace(spans).iter().filter(|t| t.span.name == "decode step").count();
            let is_linked = spans.iter().any(|t| is_last_step(t, spans));
            servers(&in_trace(spans)) >= 2 && steps >= 7 && is_linked
        })
        .await;
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
    // Stages share their instants: there is nothing between them, before the first or after the
    // last.
    let follow = |stages: &[&ExportedSpan], begin: u64| {
        stages.iter().fold(begin, |end, stage| {
            assert_eq!(stage.span.start_time_unix_nano, end, "{}", stage.span.name);
            stage.span.end_time_unix_nano
        })
    };
    let admission = one("admission", SpanKind::Internal, &at_router.span.span_id);
    let route = one("route", SpanKind::Internal, &at_router.span.span_id);
    let attempt = one("attempt", SpanKind::Client, &at_router.span.span_id);
    follow(&[admission, route, attempt], at_router.span.start_time_unix_nano);
    let at_worker = one("text_completion storyteller", SpanKind::Server, &attempt.span.span_id);
    let stages = ["tokenize", "queue", "prefill", "decode", "stream"]
        .map(|stage| one(stage, SpanKind::Internal, &at_worker.span.span_id));
    let end = follow(&stages, at_worker.span.start_time_unix_nano);
    assert_eq!(at_worker.span.end_time_unix_nano, end);

    // The same stages are in the last message.
    let timings = completion.finished.timings.as_ref().unwrap();
    let nanos = |stage: &Option<prost_types::Duration>| {
        stage.map_or(0, |time| time.seconds as u64 * 1_000_000_000 + time.nanos as u64)
    };
    let duration =
        |span: &ExportedSpan| span.span.end_time_unix_nano - span.span.start_time_unix_nano;
    let [tokenize, queue, prefill, decode, stream] = stages;
    for (span, timing) in [
        (tokenize, &timings.tokenize),
        (queue, &timings.queue),
        (prefill, &timings.prefill),
        (decode, &timings.decode),
        (stream, &timings.stream),
        (at_worker, &timings.worker_total),
        (admission, &timings.admission),
        (route, &timings.route),
        (at_router, &timings.total),
    ] {
        assert_eq!(duration(span), nanos(timing), "{}", span.span.name);
    }
    let router_stages =
        [&timings.admission, &timings.route, &timings.attempts, &timings.resume].map(nanos);
    assert_eq!(router_stages.iter().sum::<u64>(), nanos(&timings.total));

    // Steps are below their stage, and in traces of their own that are linked to the request.
    let below = |name: &str, parent: &ExportedSpan| {
        let of =
            |t: &&ExportedSpan| t.span.name == name && t.span.parent_span_id == parent.span.span_id;
        spans.iter().filter(of).count()
    };
    assert!(below("prefill chunk", prefill) >= 1, "{names:?}");
    assert_eq!(below("decode step", decode), 7, "one of the 8 tokens is drawn by prefill");
    let linked = |step: &ExportedSpan| {
        step.span.links.iter().any(|link| link.span_id == at_worker.span.span_id)
    };
    let is_step = |t: &&ExportedSpan| t.span.name == "engine step";
    let step = all.iter().filter(is_step).find(|step| linked(step));
    let step = step.unwrap_or_else(|| panic!("no step is linked to the request"));
    assert_ne!(step.span.trace_id, TRACE);
    let parts: Vec<_> = all.iter().filter(|t| t.span.parent_span_id == step.span.span_id).collect();
    let order = ["draft", "plan", "run", "sample"];
    let parts = order.map(|part| *parts.iter().find(|t| t.span.name == part).unwrap());
    let end = follow(&parts, step.span.start_time_unix_nano);
    assert_eq!(step.span.end_time_unix_nano, end);

    for span in &spans {
        assert_eq!(span.span.trace_state, "vendor=1");
    }
    for (span, key, value) in [
        (at_router, "gen_ai.operation.name", "text_completion"),
        (at_router, "gen_ai.request.id", completion.accepted.request_id.as_str()),
        (at_router, "gen_ai.request.model", "storyteller"),
        (at_router, "gen_ai.usage.output_tokens", "8"),
        (at_router, "rpc.response.status_code", "OK"),
        (attempt, "stoker.worker.id", "w"),
        (attempt, "stoker.attempt", "1"),
        (route, "stoker.route.policy", "prefix-affinity"),
        (route, "stoker.route.candidates", "1"),
        (step, "stoker.batch.sequences", "1"),
        (decode, "stoker.tokens.drafted", "0"),
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

/// A worker is lost in the middle of a response.
#[tokio::test(flavor = "multi_thread")]
async fn a_resume_is_a_second_attempt_with_its_cause() {
    let mut collector = Collector::start().await;
    let endpoint = format!("http://{}", collector.address);
    let worker = || Process::start("stoker-worker", &["--simulate", "step = \"20ms\""]);
    let workers = [worker(), worker()];
    let addresses = workers.iter().map(|w| w.address.as_str()).collect::<Vec<_>>().join(",");
    let arguments = ["--workers", &addresses, "--otlp-endpoint", &endpoint];
    let mut command = traced("stoker-router", &arguments);
    command.args(["--metrics-listen", "127.0.0.1:0", "--slow-request-log", "1ms"]);
    let router = Process::spawn(command);
    wait_for_metrics(&router, |m| m["stoker_router_workers{state=\"live\"}"] == 2.0).await;
    let mut client = inference(&router.address).await;
    let stream = client.generate(request("Once", 1, 60)).await.unwrap().into_inner();
    let mut workers = Vec::from(workers);
    let (mut stream, mut tokens, mut last) = (stream, 0, None);
    let mut serving = String::new();
    while let Some(event) = stream.message().await.unwrap() {
        match event.event.unwrap() {
            Event::Accepted(accepted) => serving = accepted.worker,
            Event::Token(_) => tokens += 1,
            Event::Finished(finished) => last = Some(finished),
            _ => {}
        }
        if tokens == 10 {
            // Kills the worker that serves the response.
            workers.retain(|worker| worker.id != serving);
        }
    }
    assert_eq!(tokens, 60);
    let timings = last.unwrap().timings.unwrap();
    assert_eq!(timings.resumes, 1);
    let spans =
        collector.until(|spans| spans.iter().any(|t| t.span.kind == SpanKind::Server as i32)).await;
    let attempts: Vec<_> = spans.iter().filter(|t| t.span.name == "attempt").collect();
    let cause = |t: &ExportedSpan| t.attribute("stoker.attempt.cause");
    assert_eq!(
        attempts.iter().map(|t| cause(t)).collect::<Vec<_>>(),
        [None, Some("WORKER_LOST".to_owned())]
    );
    assert_eq!(attempts[0].attribute("error.type").as_deref(), Some("WORKER_LOST"));
    let resume = spans.iter().find(|t| t.span.name == "resume").unwrap();
    assert_eq!(attempts[1].span.start_time_unix_nano, resume.span.end_time_unix_nano);
    let slow = router.log_entry("slow request").await;
    for field in ["admission_ms", "route_ms", "attempts_ms", "resume_ms", "prefill_ms", "decode_ms"]
    {
        assert!(slow[field].is_number(), "no {field} in {slow:#}");
    }
}

#[test]
fn an_unsupported_collector_is_refused_at_startup() {
    for (name, value, expected) in [
        ("STOKER_OTLP_ENDPOINT", "http://a:4318/v1/traces", "without a path"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "secret", "OTEL_EXPORTER_OTLP_HEADERS: the header `secret`"),
        ("OTEL_TRACES_SAMPLER", "often", "OTEL_TRACES_SAMPLER often: "),
        ("OTEL_BSP_SCHEDULE_DELAY", "1s", "OTEL_BSP_SCHEDULE_DELAY 1s: write a whole number"),
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

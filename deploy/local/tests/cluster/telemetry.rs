//! Telemetry: one trace over client, router and worker, and metrics of successful and failed
//! requests.

use std::time::Duration;

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use stoker_proto::v1::{
    GenerateRequest, TokenIds, generate_request::Input, generate_response::Event,
};
use tokio::{net::TcpListener, time::timeout};
use tonic::{Code, Request};

use crate::{
    otlp_collector::{Collector, ExportedSpan, find, traced},
    support::{Metrics, Process, complete, http, inference, program, read, request, scrape},
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
    let counted = of("stoker_worker_steps_total", "");
    let observed = of("stoker_worker_step_duration_seconds_count", "");
    let is_over =
        |m: &Metrics| m.get(&over) == Some(&1.0) && m[&idle] == 0.0 && m[&counted] == m[&observed];
    let worker = wait_for_metrics(&worker, is_over).await;
    for (name, value) in [
        (of("stoker_worker_requests_total", ",outcome=\"length\""), 3.0),
        (of("stoker_worker_queue_time_seconds_count", ""), 3.0),
        (of("stoker_worker_kv_cache_usage_ratio", ""), 0.0),
        (of("stoker_worker_preemptions_total", ""), 0.0),
    ] {
        assert_eq!(worker.get(&name), Some(&value), "{name} in {worker:#?}");
    }
    assert!(worker[&of("stoker_worker_prompt_tokens_total", "")] >= f64::from(prompt));
    assert!(worker[&counted] >= 24.0, "{worker:#?}");
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

/// An engine that hangs: not ready after a while, and in the end not alive.
#[tokio::test(flavor = "multi_thread")]
async fn health_means_progress() {
    let profile = "step = \"1ms\", hang_token = 7";
    let flags = ["--engine-stall-timeout", "2s", "--metrics-listen", "127.0.0.1:0"];
    let worker = Process::start("stoker-worker", &[&["--simulate", profile][..], &flags].concat());
    let metrics = worker.metrics.clone().unwrap();
    let probe = async |path: &str| http(&metrics, "GET", path, "").await;
    assert!(probe("/readyz").await.0.starts_with("http/1.1 200"));
    let mut client = inference(&worker.address).await;
    complete(&mut client, request("Once", 1, 4)).await.unwrap();
    let poison = GenerateRequest {
        input: Some(Input::TokenIds(TokenIds { ids: vec![7] })),
        ..request("", 1, 4)
    };
    let _stream = client.generate(poison).await.unwrap();
    let stalled = worker.log_entry("the engine makes no progress: not ready (/readyz)").await;
    assert_eq!((&stalled["running"], &stalled["waiting"]), (&0.into(), &1.into()), "{stalled:#}");
    let (head, body) = probe("/readyz").await;
    assert!(head.starts_with("http/1.1 503") && body.contains("no progress"), "{head} {body}");
    // The log says what each thread does, and the one of the engine sleeps.
    let thread = worker.log_entry("thread").await;
    assert!(thread["name"].is_string() && thread["state"].is_string(), "{thread:#}");
    worker.log_entry("a restart is due (/livez)").await;
    let (head, body) = probe("/livez").await;
    assert!(head.starts_with("http/1.1 503") && body.contains("restart"), "{head} {body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn some_metrics_have_the_names_of_another_project() {
    let any = ["--metrics-listen", "127.0.0.1:0", "--metrics-alias", "vllm"];
    let worker = ["--simulate", "instant", "--worker-id", "w", "--model-name", "m"];
    let worker = Process::start("stoker-worker", &[&worker[..], &any].concat());
    let router = ["--workers", worker.address.as_str()];
    let router = Process::start("stoker-router", &[&router[..], &any].concat());
    wait_for_metrics(&router, |m| m["stoker_router_workers{state=\"live\"}"] == 1.0).await;
    complete(&mut inference(&router.address).await, request("Once", 1, 8)).await.unwrap();
    let generated = "vllm:generation_tokens_total{model_name=\"m\"}";
    let at_router = wait_for_metrics(&router, |m| m.get(generated) == Some(&8.0)).await;
    let generated = "vllm:generation_tokens_total{model_name=\"m\",worker=\"w\"}";
    let at_worker = wait_for_metrics(&worker, |m| m.get(generated) == Some(&8.0)).await;
    for (metrics, worker) in [(&at_router, ""), (&at_worker, ",worker=\"w\"")] {
        for name in [
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:kv_cache_usage_perc",
            "vllm:prompt_tokens_total",
            "vllm:time_to_first_token_seconds_count",
            "vllm:inter_token_latency_seconds_count",
        ] {
            let sample = format!("{name}{{model_name=\"m\"{worker}}}");
            assert!(metrics.contains_key(&sample), "no {sample} in {metrics:#?}");
        }
        let config = metrics.iter().find(|(name, _)| name.starts_with("vllm:cache_config_info{"));
        let (name, value) = config.unwrap();
        assert!(name.contains("num_gpu_blocks=\"") && name.contains("block_size=\"16\""), "{name}");
        assert_eq!(*value, 1.0);
    }
}

/// `stoker serve`: the router and each worker in one exposition.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_in_one_process_has_metrics_of_each_worker() {
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
    let mut command = program("stoker");
    command.args(arguments).args(["--log", "info", "--log-format", "json"]);
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let log = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut entries = std::io::BufRead::lines(log)
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(&line).ok());
    let url = entries.find_map(|entry| entry["url"].as_str().map(str::to_owned)).unwrap();
    // Keeps reading, or the process could not log.
    std::thread::spawn(move || entries.for_each(drop));
    let reads = async {
        loop {
            let (_, body) = http(&url, "GET", "/metrics", "").await;
            let described = body.matches("# TYPE stoker_worker_steps_total counter").count();
            let workers =
                ["worker-1", "worker-2"].map(|id| body.contains(&format!("worker=\"{id}\"")));
            if workers == [true, true] {
                assert_eq!(described, 1, "{body}");
                assert!(body.contains("stoker_router_workers{state=\"live\"} 2"), "{body}");
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = timeout(TEST_TIMEOUT, reads).await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(in_time.is_ok(), "no metrics of both workers");
}

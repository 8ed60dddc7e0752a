//! Metrics of successful and failed requests, and health as progress.

use std::time::Duration;

use stoker_proto::v1::{GenerateRequest, TokenIds, generate_request::Input};
use tokio::time::timeout;
use tonic::{Code, Request};

use crate::support::{Metrics, Process, complete, http, inference, program, request, scrape};

/// Limit of every wait, far longer than any of them takes: a test that reaches it fails.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Scrapes until the metrics satisfy `wanted`: a request is counted shortly after its last event.
pub(crate) async fn wait_for_metrics(
    process: &Process,
    wanted: impl Fn(&Metrics) -> bool,
) -> Metrics {
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

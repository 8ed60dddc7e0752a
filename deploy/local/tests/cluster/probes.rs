//! The metrics port: exposition formats, and probes that agree with gRPC health.

use std::{
    collections::BTreeSet,
    io::Write,
    process::{Child, Command, Stdio},
};

use futures::StreamExt;
use tokio::{net::TcpStream, time::timeout};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    clients::find,
    support::{Process, TEST_TIMEOUT, channel, complete, http, inference, program, read, request},
};

/// Capacity of a pipe, in bytes.
const PIPE: usize = 64 * 1024;

const METRICS: [&str; 2] = ["--metrics-listen", "127.0.0.1:0"];

/// Starts a worker on a simulated device and its router, both with a metrics port.
fn start(profile: &str) -> (Process, Process) {
    let worker = ["--simulate", profile];
    let worker = Process::start("stoker-worker", &[&worker[..], &METRICS].concat());
    let router = ["--workers", &worker.address];
    let router = Process::start("stoker-router", &[&router[..], &METRICS].concat());
    (worker, router)
}

fn metrics(process: &Process) -> &str {
    process.metrics.as_deref().unwrap()
}

/// Waits until gRPC health reports `wanted`.
async fn wait_for_health(process: &Process, wanted: ServingStatus) {
    let wait = async {
        loop {
            let mut client = HealthClient::new(channel(&process.address).await);
            // A connection that was made just before a drain is closed before it sends the call.
            let Ok(states) = client.watch(HealthCheckRequest::default()).await else { continue };
            let mut states = states.into_inner();
            while let Some(Ok(state)) = states.next().await {
                if state.status() == wanted {
                    return;
                }
            }
        }
    };
    timeout(TEST_TIMEOUT, wait).await.unwrap();
}

/// Returns the response's status code and body.
async fn probe(metrics: &str, path: &str) -> (String, String) {
    let (head, body) = http(metrics, "GET", path, "").await;
    assert!(head.contains("content-type: text/plain; charset=utf-8"), "{head}");
    (head.split(' ').nth(1).unwrap().to_owned(), body)
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_accepts_the_metrics() {
    let (worker, router) = start("instant");
    wait_for_health(&router, ServingStatus::Serving).await;
    let mut client = inference(&router.address).await;
    complete(&mut client, request("Once", 1, 8)).await.unwrap();
    let Some(promtool) = find("STOKER_TEST_PROMTOOL", "promtool", &["--version"]) else { return };
    for process in [&router, &worker] {
        let (head, text) = http(metrics(process), "GET", "/metrics", "").await;
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        assert!(text.lines().count() > 50, "{text}");
        let mut check = Command::new(&promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = check.wait_with_output().unwrap();
        let what = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success() && what.is_empty(), "{what}\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_formats_have_the_same_samples() {
    let (worker, router) = start("instant");
    // Until then, label values for the states of workers change.
    wait_for_health(&router, ServingStatus::Serving).await;
    for process in [&router, &worker] {
        let open_metrics = "text/plain;q=0.5, application/openmetrics-text;version=1.0.0";
        let (head, open_metrics) = http(metrics(process), "GET", "/metrics", open_metrics).await;
        assert!(
            head.contains("content-type: application/openmetrics-text; version=1.0.0"),
            "{head}"
        );
        assert!(open_metrics.ends_with("\n# EOF\n"), "{open_metrics}");
        let (_, text) = http(metrics(process), "GET", "/metrics", "*/*").await;
        assert!(!text.contains("# EOF") && !text.contains("# UNIT") && !text.contains(" info\n"));
        // Compared by name and unordered: values change between two scrapes, and label values have
        // no order.
        let names = |body: &str| -> BTreeSet<String> {
            let samples = body.lines().filter(|line| !line.starts_with('#'));
            samples.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
        };
        assert_eq!(names(&text), names(&open_metrics));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_is_ready_while_it_has_a_worker_and_reports_why_not() {
    // A free port, where the worker listens later.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let flags = ["--workers", &address, "--drain-timeout", "60s"];
    let router = Process::start("stoker-router", &[&flags[..], &METRICS].concat());
    assert_eq!(probe(metrics(&router), "/livez").await, ("200".into(), "ok\n".into()));
    let (code, reason) = probe(metrics(&router), "/readyz").await;
    assert_eq!(code, "503");
    assert!(reason.contains("no worker is ready; "), "{reason}");

    let flags = ["--simulate", r#"step = "5ms""#, "--listen", &address];
    let worker = Process::start("stoker-worker", &[&flags[..], &METRICS].concat());
    assert_eq!(probe(metrics(&worker), "/readyz").await, ("200".into(), "ok\n".into()));
    wait_for_health(&router, ServingStatus::Serving).await;
    assert_eq!(probe(metrics(&router), "/readyz").await, ("200".into(), "ok\n".into()));

    // While a stream runs, both processes drain and are live.
    let mut client = inference(&router.address).await;
    let stream = client.generate(request("Once", 1, 1_000)).await.unwrap().into_inner();
    for process in [&router, &worker] {
        process.terminate();
        wait_for_health(process, ServingStatus::NotServing).await;
        let (code, reason) = probe(metrics(process), "/readyz").await;
        assert_eq!((code.as_str(), reason.as_str()), ("503", "draining\n"));
        assert_eq!(probe(metrics(process), "/livez").await.0, "200");
    }
    assert_eq!(read(stream, || ()).await.unwrap().ids.len(), 1_000);
}

/// A worker that loads its model. Killed when it is dropped.
struct Loading(Child);

impl Drop for Loading {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_loads_its_model_is_live_and_not_ready() {
    // Standard error is a full pipe: with --load-timings, loading writes to it and blocks until
    // this test reads. Other log messages are disabled by --log.
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&[b'\n'; PIPE]).unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = free.local_addr().unwrap().to_string();
    drop(free);
    let flags =
        ["--model", "storyteller", "--load-timings", "--log", "error", "--listen", "127.0.0.1:0"];
    let mut command = program("stoker-worker");
    command.args(flags).args(["--metrics-listen", &host]).stderr(writer);
    let _worker = Loading(command.spawn().unwrap());
    // The command holds the write end of the pipe too.
    drop(command);
    let listens = async { while TcpStream::connect(&host).await.is_err() {} };
    timeout(TEST_TIMEOUT, listens).await.unwrap();

    let url = format!("http://{host}/metrics");
    assert_eq!(probe(&url, "/livez").await, ("200".into(), "ok\n".into()));
    let loading = ("503".into(), "loading the model\n".into());
    assert_eq!(probe(&url, "/readyz").await, loading);
    let (_, text) = http(&url, "GET", "/metrics", "").await;
    assert!(text.contains("\nstoker_build_info{version="), "{text}");
    assert!(!text.contains("stoker_worker_"), "{text}");
    let (head, body) = http(&url, "HEAD", "/readyz", "").await;
    assert!(head.starts_with("http/1.1 503") && body.is_empty(), "{head}{body}");
    assert!(http(&url, "GET", "/health", "").await.0.starts_with("http/1.1 404"));
    assert!(http(&url, "POST", "/readyz", "").await.0.starts_with("http/1.1 405"));

    std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    let loaded = async { while probe(&url, "/readyz").await.0 != "200" {} };
    timeout(TEST_TIMEOUT, loaded).await.unwrap();
    assert!(http(&url, "GET", "/metrics", "").await.1.contains("stoker_worker_"));
}

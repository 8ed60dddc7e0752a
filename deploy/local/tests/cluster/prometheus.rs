//! Metrics as others read them: the parser of Go programs, and Prometheus with and without storage
//! of exemplars.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::{
    clients::find,
    support::{Process, TEST_TIMEOUT, complete, http, inference, program, request, scrape},
};

const METRICS: [&str; 2] = ["--metrics-listen", "127.0.0.1:0"];

/// A worker and its router, with a collector that is not there, so that requests are traced.
async fn start() -> (Process, Process) {
    let traced = |name: &str, arguments: &[&str]| {
        let mut command = program(name);
        command.args(arguments).args(METRICS).args(["--otlp-endpoint", "127.0.0.1:1"]);
        Process::spawn(command)
    };
    let worker = traced("stoker-worker", &["--simulate", "instant", "--worker-id", "w"]);
    let router = traced("stoker-router", &["--workers", &worker.address]);
    let ready = async {
        while scrape(&router).await["stoker_router_workers{state=\"live\"}"] != 1.0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(TEST_TIMEOUT, ready).await.unwrap();
    let mut client = inference(&router.address).await;
    for seed in 0..3 {
        complete(&mut client, request("Once", seed, 8)).await.unwrap();
    }
    (worker, router)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parser_of_go_programs_reads_the_metrics() {
    let Some(expfmt) = find("STOKER_TEST_EXPFMT", "expfmt", &["--version"]) else { return };
    let (worker, router) = start().await;
    for process in [&worker, &router] {
        let url = process.metrics.as_deref().unwrap();
        let (_, text) = http(url, "GET", "/metrics", "text/plain").await;
        let mut parser = Command::new(&expfmt)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        parser.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = parser.wait_with_output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{errors}\n{text}");
        // Every family that is described is read, with its type.
        let read = String::from_utf8(output.stdout).unwrap();
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            let is_empty = !text.lines().any(|line| line.starts_with(name));
            let expected = format!("{name} {} ", kind.to_uppercase());
            assert!(is_empty || read.contains(&expected), "no {expected} in {read}");
        }
    }
}

/// A running Prometheus, which scrapes some processes once a second. Ended when it is dropped.
pub struct Prometheus {
    child: Child,
    url: String,
    _folder: TempDir,
}

impl Prometheus {
    /// Starts it with the rules in the folder `rules`, if there are any.
    pub fn start(
        program: &Path,
        scraped: &[&Process],
        rules: Option<&Path>,
        flags: &[&str],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let targets = scraped.iter().map(|process| {
            let url = process.metrics.as_deref().unwrap().strip_prefix("http://").unwrap();
            format!("'{}'", url.strip_suffix("/metrics").unwrap())
        });
        let targets = targets.collect::<Vec<_>>().join(", ");
        let rules = rules.map(|folder| format!("rule_files: ['{}/*.yml']\n", folder.display()));
        let configuration = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n{}scrape_configs:\n  \
             - job_name: stoker\n    static_configs: [{{targets: [{targets}]}}]\n",
            rules.unwrap_or_default()
        );
        let file = folder.path().join("prometheus.yml");
        fs::write(&file, configuration).unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let child = Command::new(program)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .args(flags)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, url: format!("http://{address}/"), _folder: folder }
    }

    /// Calls the API until `enough` finds what it wants in the data.
    pub async fn until<T>(&self, path: &str, enough: impl Fn(&Value) -> Option<T>) -> T {
        let mut last = Value::Null;
        let calls = async {
            loop {
                let address = self.url.strip_prefix("http://").unwrap().trim_end_matches('/');
                // It does not listen at once.
                if tokio::net::TcpStream::connect(address).await.is_ok() {
                    let (_, body) = http(&self.url, "GET", path, "").await;
                    let json = body.find('{').and_then(|at| body.get(at..=body.rfind('}')?));
                    last =
                        json.and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
                    if let Some(found) = enough(&last["data"]) {
                        return found;
                    }
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let found = timeout(TEST_TIMEOUT, calls).await;
        found.unwrap_or_else(|_| panic!("{path}: {last:#}"))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_reads_the_metrics_with_and_without_exemplars() {
    let Some(program) = find("STOKER_TEST_PROMETHEUS", "prometheus", &["--version"]) else {
        return;
    };
    let (worker, router) = start().await;
    for flags in [&[][..], &["--enable-feature=exemplar-storage"]] {
        let prometheus = Prometheus::start(&program, &[&worker, &router], None, flags);
        let both_up = |data: &Value| {
            let targets = data["activeTargets"].as_array()?;
            for target in targets {
                assert_eq!(target["lastError"], "", "{target:#}");
            }
            let up = targets.iter().filter(|target| target["health"] == "up").count();
            (up == 2).then_some(())
        };
        prometheus.until("/api/v1/targets", both_up).await;
        for metric in [
            "stoker_worker_steps_total",
            "stoker_router_requests_total",
            "stoker_worker_cache_config_info",
            "stoker_worker_time_to_first_token_seconds_count",
            "process_resident_memory_bytes",
        ] {
            let has_data =
                |data: &Value| data["result"].as_array().filter(|r| !r.is_empty()).map(|_| ());
            prometheus.until(&format!("/api/v1/query?query={metric}"), has_data).await;
        }
        if flags.is_empty() {
            continue;
        }
        let query = "/api/v1/query_exemplars?query=stoker_router_time_to_first_token_seconds_bucket\
                     &start=1&end=9999999999";
        let trace = |data: &Value| {
            data.pointer("/0/exemplars/0/labels/trace_id")?.as_str().map(str::to_owned)
        };
        let trace = prometheus.until(query, trace).await;
        assert!(trace.len() == 32 && trace.bytes().all(|b| b.is_ascii_hexdigit()), "{trace}");
    }
}

//! A real trace store receives the traces of a request, and returns them by its API.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;
use stoker_proto::v1::GenerateRequest;
use tokio::time::timeout;
use tonic::Request;

use crate::{
    clients::find,
    support::{Process, TEST_TIMEOUT, http, inference, read, request},
};

/// Everything is on loopback, on free ports, and in memory.
const CONFIGURATION: &str = r#"
service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces: { receivers: [otlp], exporters: [jaeger_storage_exporter] }
  telemetry:
    logs: { encoding: json }
    metrics: { level: none }
extensions:
  jaeger_storage: { backends: { memory: { memory: { max_traces: 1000 } } } }
  jaeger_query:
    enable_tracing: false
    storage: { traces: memory }
    http: { endpoint: "127.0.0.1:0" }
    grpc: { endpoint: "127.0.0.1:0" }
receivers:
  otlp: { protocols: { grpc: { endpoint: "127.0.0.1:0" } } }
exporters:
  jaeger_storage_exporter: { trace_storage: memory }
"#;

/// A running Jaeger. Ended when it is dropped.
struct Jaeger {
    child: Child,
    /// Address of the receiver of spans.
    receiver: String,
    /// URL of the API.
    api: String,
}

impl Jaeger {
    /// Starts it and waits until it is ready.
    fn start(program: &Path) -> Self {
        let configuration = format!("yaml:{CONFIGURATION}");
        let mut child = Command::new(program)
            .args(["--config", &configuration])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let (mut receiver, mut api) = (None, None);
        for line in log.by_ref() {
            let entry: Value = serde_json::from_str(&line).unwrap_or_default();
            let text = |key: &str| entry[key].as_str().map(str::to_owned);
            match entry["msg"].as_str().unwrap_or_default() {
                "Starting GRPC server" => receiver = receiver.or(text("endpoint")),
                "Query server started" => api = text("http_addr"),
                message if message.starts_with("Everything is ready") => break,
                _ => {}
            }
        }
        // Keeps reading, or the process would block on a full pipe.
        thread::spawn(move || log.for_each(drop));
        let api = format!("http://{}/", api.expect("the address of the API"));
        Self { child, receiver: receiver.expect("the address of the receiver"), api }
    }

    /// Returns the spans of a trace as the API has them now.
    async fn spans(&self, trace_id: &str) -> Vec<Value> {
        let path = format!("/api/traces/{trace_id}?raw=true");
        let (_, body) = http(&self.api, "GET", &path, "application/json").await;
        let json = body.find('{').and_then(|at| body.get(at..=body.rfind('}')?));
        let trace: Value = serde_json::from_str(json.unwrap_or("null")).unwrap_or_default();
        let services = &trace["data"][0]["processes"];
        let mut spans = trace["data"][0]["spans"].as_array().cloned().unwrap_or_default();
        for span in &mut spans {
            let process = span["processID"].as_str().unwrap().to_owned();
            span["service"] = services[&process]["serviceName"].clone();
        }
        spans
    }
}

impl Drop for Jaeger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The id of the span that `span` is a child of.
fn parent(span: &Value) -> Option<&str> {
    span["references"][0]["spanID"].as_str()
}

fn bounds(span: &Value) -> (u64, u64) {
    let start = span["startTime"].as_u64().unwrap();
    (start, start + span["duration"].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn a_trace_is_read_back_from_a_store() {
    let Some(program) = find("STOKER_TEST_JAEGER", "jaeger", &["help"]) else { return };
    let jaeger = Jaeger::start(&program);
    let export = ["--otlp-endpoint", &jaeger.receiver];
    let own = ["--model", "storyteller", "--worker-id", "w", "--trace-steps", "1"];
    let worker = Process::start("stoker-worker", &[&own[..], &export].concat());
    let router =
        Process::start("stoker-router", &[&["--workers", &worker.address], &export[..]].concat());
    let mut client = inference(&router.address).await;
    // The router may not have connected to its worker yet.
    while client.generate(request("Once", 1, 1)).await.is_err() {
        tokio::task::yield_now().await;
    }
    let trace_id = "0af7651916cd43dd8448eb211c80319c";
    let traced = || {
        let mut request: Request<GenerateRequest> = Request::new(request("Once upon", 1, 8));
        let header = format!("00-{trace_id}-b7ad6b7169203331-01");
        request.metadata_mut().insert("traceparent", header.parse().unwrap());
        request
    };
    let stream = client.generate(traced()).await.unwrap().into_inner();
    read(stream, || ()).await.unwrap();

    // Both processes export on their own, every few seconds.
    let complete = async {
        loop {
            let spans = jaeger.spans(trace_id).await;
            let count =
                |name: &str| spans.iter().filter(|span| span["operationName"] == name).count();
            if count("text_completion storyteller") == 2 && count("decode step") == 7 {
                return spans;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let spans = timeout(TEST_TIMEOUT, complete).await.unwrap();
    let by_id: BTreeMap<&str, &Value> =
        spans.iter().map(|span| (span["spanID"].as_str().unwrap(), span)).collect();
    let mut below = BTreeMap::<(&str, &str), Vec<&str>>::new();
    for span in &spans {
        let name = span["operationName"].as_str().unwrap();
        let parent = parent(span).unwrap();
        // The client's own span is not here.
        let Some(parent) = by_id.get(parent) else { continue };
        let (service, above) = (parent["service"].as_str().unwrap(), &parent["operationName"]);
        below.entry((service, above.as_str().unwrap())).or_default().push(name);
        // A child is within its parent.
        let ((start, end), (parent_start, parent_end)) = (bounds(span), bounds(parent));
        // Times are rounded to microseconds, as are durations.
        assert!(
            parent_start <= start && end <= parent_end + 1,
            "{name} below {parent:#}: {span:#}"
        );
    }
    below.values_mut().for_each(|names| names.sort_unstable());
    let request = "text_completion storyteller";
    for (parent, expected) in [
        (("stoker-router", request), vec!["admission", "attempt", "route"]),
        (("stoker-router", "attempt"), vec![request]),
        (("stoker-worker", request), vec!["decode", "prefill", "queue", "stream", "tokenize"]),
        (("stoker-worker", "prefill"), vec!["prefill chunk"]),
        (("stoker-worker", "decode"), vec!["decode step"; 7]),
    ] {
        assert_eq!(below.get(&parent), Some(&expected), "{parent:?}");
    }
}

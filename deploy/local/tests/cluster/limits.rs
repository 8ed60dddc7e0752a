//! Every limit of docs/limits.md: a client that goes past it is refused or closed, and another one
//! notices nothing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request as HttpRequest;
use serde_json::json;
use stoker_proto::v1::{GenerateRequest, generate_response::Event};
use stoker_shared::{
    client::{CallError, Client, Credentials},
    config::Secret,
    deadline::Deadline,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::JoinHandle,
    time::timeout,
};
use tonic::Code;

use crate::{
    authority::Authority,
    support::{Process, TEST_TIMEOUT, output, program, request},
    tenants::{Keys, post},
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A worker, and a router with these flags.
struct Cluster {
    router: Process,
    _worker: Process,
}

impl Cluster {
    fn start(flags: &[&str]) -> Self {
        let worker = Process::start("stoker-worker", &["--simulate", r#"step = "5ms""#]);
        let own = ["--workers", &worker.address, "--http-listen", "127.0.0.1:0"];
        let router = Process::start("stoker-router", &[&own[..], flags].concat());
        Self { router, _worker: worker }
    }

    fn address(&self) -> &str {
        &self.router.address
    }
}

async fn generate(client: &Client, request: GenerateRequest) -> Result<u32, CallError> {
    let mut response = client.generate(request, Deadline::after(TEST_TIMEOUT)).await?;
    let mut tokens = 0;
    while let Some(event) = response.next().await? {
        if let Event::Token(delta) = event.kind {
            tokens += delta.ids.len() as u32;
        }
    }
    Ok(tokens)
}

/// A client that sends one request after the other, none of which may fail.
struct Polite {
    task: JoinHandle<u32>,
    stop: Arc<Notify>,
}

impl Polite {
    async fn start(address: &str, key: Option<&str>) -> Self {
        let key = key.map(|key| Secret::from(key.to_owned()));
        let credentials = Credentials { api_key: key, ..Credentials::default() };
        let client = Client::connect_with(&address.parse().unwrap(), &credentials).await.unwrap();
        // The first one waits for the worker.
        let first = async { while generate(&client, request("Once", 1, 2)).await.is_err() {} };
        timeout(TEST_TIMEOUT, first).await.unwrap();
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut completed = 0;
            let stopped = stopped.notified();
            tokio::pin!(stopped);
            loop {
                let request = generate(&client, request("Once upon", 1, 20));
                assert_eq!(request.await.unwrap(), 20, "the other client notices it");
                completed += 1;
                if futures::poll!(&mut stopped).is_ready() {
                    return completed;
                }
            }
        });
        Self { task, stop }
    }

    /// Ends it after the request that runs.
    async fn unharmed(self) {
        self.stop.notify_one();
        assert!(timeout(TEST_TIMEOUT, self.task).await.unwrap().unwrap() > 0);
    }
}

/// Opens a connection of a well-behaved library.
async fn connect(address: &str) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
    let tcp = TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(tcp).await.unwrap();
    (client, tokio::spawn(connection))
}

fn call(address: &str) -> HttpRequest<()> {
    let request = HttpRequest::post(format!("http://{address}/stoker.v1.Inference/Generate"));
    request.header("content-type", "application/grpc").header("te", "trailers").body(()).unwrap()
}

/// Waits until the server closes the connection.
async fn until_closed(socket: &mut TcpStream) -> Duration {
    let began = Instant::now();
    let mut bytes = [0; 4096];
    let read = async { while !matches!(socket.read(&mut bytes).await, Ok(0) | Err(_)) {} };
    timeout(TEST_TIMEOUT, read).await.unwrap();
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_have_a_maximum_size() {
    let cluster = Cluster::start(&["--max-request-size", "64KiB"]);
    let worker = ["--simulate", "instant", "--max-request-size", "64KiB"];
    let worker = Process::start("stoker-worker", &worker);
    let polite = Polite::start(cluster.address(), None).await;
    let large = "word ".repeat(20_000);
    let client = Client::connect(&cluster.address().parse().unwrap()).await.unwrap();
    let refused = generate(&client, request(&large, 1, 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    let body = json!({ "prompt": large, "max_tokens": 1 });
    let (status, _, response) = post(&cluster.router, "/v1/completions", None, &body).await;
    assert_eq!(status, 413, "{response}");
    assert!(response["error"]["message"].as_str().unwrap().contains("65536"), "{response}");
    // Of a worker, what a router adds comes on top.
    let direct = Client::connect(&worker.address.parse().unwrap()).await.unwrap();
    let refused = generate(&direct, request(&large, 1, 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "too long for the model: {refused}");
    let larger = "word ".repeat(8 << 20);
    let refused = generate(&direct, request(&larger, 1, 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    polite.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_have_a_maximum_size() {
    let cluster = Cluster::start(&["--max-header-size", "4KiB"]);
    let polite = Polite::start(cluster.address(), None).await;
    let (client, _connection) = connect(cluster.address()).await;
    let mut client = client.ready().await.unwrap();
    let mut large = call(cluster.address());
    large.headers_mut().insert("x-large", "x".repeat(8_000).parse().unwrap());
    let (response, _) = client.send_request(large, true).unwrap();
    let response = timeout(TEST_TIMEOUT, response).await.unwrap();
    assert!(response.as_ref().map_or(true, |r| r.status() == 431), "{response:?}");
    // Over HTTP/1.1.
    let http = cluster.router.started["http"].as_str().unwrap();
    let mut socket = TcpStream::connect(http).await.unwrap();
    let head = format!("GET /v1/models HTTP/1.1\r\nhost: x\r\nx-large: {}\r\n", "x".repeat(8_000));
    socket.write_all(format!("{head}connection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut response = String::new();
    socket.read_to_string(&mut response).await.unwrap();
    assert!(
        response.starts_with("HTTP/1.1 431 ") && response.contains("--max-header-size"),
        "{response}"
    );
    polite.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_a_maximum_number_of_streams() {
    let cluster = Cluster::start(&["--max-streams-per-connection", "2"]);
    let polite = Polite::start(cluster.address(), None).await;
    let client = Client::connect(&cluster.address().parse().unwrap()).await.unwrap();
    let open = async || {
        let deadline = Deadline::after(TEST_TIMEOUT);
        client.generate(request("Once", 1, 100_000), deadline).await.unwrap()
    };
    let (first, _second) = (open().await, open().await);
    let third = timeout(Duration::from_millis(500), generate(&client, request("Once", 1, 1))).await;
    assert!(third.is_err(), "a third stream waits at the client");
    drop(first);
    assert_eq!(generate(&client, request("Once", 1, 1)).await.unwrap(), 1);
    polite.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_and_first_bytes_have_a_time_limit() {
    let ours = Authority::new();
    let own = ours.issue("router", &["127.0.0.1"]);
    let (cert, key) = (own.cert.to_str().unwrap(), own.key.to_str().unwrap());
    let cluster = Cluster::start(&["--request-read-timeout", "1s"]);
    let flags = ["--workers", "127.0.0.1:1", "--request-read-timeout", "1s"];
    let tls = Process::start(
        "stoker-router",
        &[&flags[..], &["--tls-cert", cert, "--tls-key", key]].concat(),
    );
    let polite = Polite::start(cluster.address(), None).await;
    let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    for (address, sent) in [
        (cluster.address(), &b""[..]),
        (cluster.address(), &PREFACE[..10]),
        (&tls.address, b""),
        (&tls.address, &hello),
    ] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(sent).await.unwrap();
        let closed = until_closed(&mut socket).await;
        assert!(closed >= Duration::from_millis(500), "{sent:?}: {closed:?}");
    }
    polite.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_respond_to_pings_is_closed() {
    let flags = ["--keepalive-interval", "500ms", "--keepalive-timeout", "500ms"];
    let cluster = Cluster::start(&flags);
    let polite = Polite::start(cluster.address(), None).await;
    let mut socket = TcpStream::connect(cluster.address()).await.unwrap();
    socket.write_all(PREFACE).await.unwrap();
    until_closed(&mut socket).await;
    // A library responds.
    let (_client, connection) = connect(cluster.address()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!connection.is_finished());
    polite.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_have_a_maximum_age_and_their_calls_grace() {
    let cluster = Cluster::start(&["--max-connection-age", "1s"]);
    let polite = Polite::start(cluster.address(), None).await;
    // A call that runs when the connection is too old ends as usual, and the next one has another.
    let client = Client::connect(&cluster.address().parse().unwrap()).await.unwrap();
    for _ in 0..2 {
        assert_eq!(generate(&client, request("Once", 1, 300)).await.unwrap(), 300);
    }
    // A connection without calls is closed.
    let mut socket = TcpStream::connect(cluster.address()).await.unwrap();
    socket.write_all(PREFACE).await.unwrap();
    until_closed(&mut socket).await;
    polite.unharmed().await;

    let grace = ["--max-connection-age", "500ms", "--max-connection-age-grace", "500ms"];
    let cluster = Cluster::start(&grace);
    let polite = Polite::start(cluster.address(), None).await;
    let client = Client::connect(&cluster.address().parse().unwrap()).await.unwrap();
    let cut = generate(&client, request("Once", 1, 100_000)).await.unwrap_err();
    assert_eq!(cut.code(), Code::Unavailable, "{cut}");
    polite.unharmed().await;
    // No age, as of a worker.
    let cluster = Cluster::start(&["--max-connection-age", "0s"]);
    Polite::start(cluster.address(), None).await.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_too_many_resets_is_closed() {
    let cluster = Cluster::start(&["--max-pending-resets", "16"]);
    let polite = Polite::start(cluster.address(), None).await;
    let (client, connection) = connect(cluster.address()).await;
    let reset = async {
        while let Ok(mut client) = client.clone().ready().await {
            let Ok((_, mut stream)) = client.send_request(call("x:1"), false) else { return };
            stream.send_reset(h2::Reason::CANCEL);
        }
    };
    timeout(TEST_TIMEOUT, reset).await.unwrap();
    let error = timeout(TEST_TIMEOUT, connection).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM), "{error}");
    polite.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_many_early_resets_is_read_more_slowly() {
    let cluster = Cluster::start(&["--max-early-resets", "8"]);
    let polite = Polite::start(cluster.address(), None).await;
    let (client, connection) = connect(cluster.address()).await;
    let resets = async {
        loop {
            // Their bodies are not complete, so that there is no response.
            let mut streams = Vec::new();
            for _ in 0..8 {
                let mut client = client.clone().ready().await.unwrap();
                streams.push(client.send_request(call("x:1"), false).unwrap());
            }
            // Time for the server to accept them: one that is reset before is dropped.
            tokio::time::sleep(Duration::from_millis(20)).await;
            streams.iter_mut().for_each(|(_, stream)| stream.send_reset(h2::Reason::CANCEL));
        }
    };
    let slowed = "a client resets more than 8 calls a second before they have a response; its \
                  connection is read more slowly (--max-early-resets)";
    tokio::select! {
        _ = cluster.router.log_entry(slowed) => {}
        () = resets => {}
    }
    // It stays open, and its other calls are served.
    let mut client = client.ready().await.unwrap();
    let (response, _) = client.send_request(call("x:1"), true).unwrap();
    assert_eq!(timeout(TEST_TIMEOUT, response).await.unwrap().unwrap().status(), 200);
    drop(client);
    connection.abort();
    polite.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_gives_way_to_a_new_one() {
    let cluster = Cluster::start(&["--max-connections", "3", "--idle-timeout", "500ms"]);
    let polite = Polite::start(cluster.address(), None).await;
    let mut idle = Vec::new();
    for _ in 0..2 {
        let mut socket = TcpStream::connect(cluster.address()).await.unwrap();
        socket.write_all(PREFACE).await.unwrap();
        idle.push(socket);
    }
    let client = Client::connect(&cluster.address().parse().unwrap()).await.unwrap();
    assert_eq!(generate(&client, request("Once", 1, 2)).await.unwrap(), 2);
    until_closed(&mut idle[0]).await;
    polite.unharmed().await;
}

/// Connections that announce a window of 0 never read a response, and respond to pings.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_reads_nothing_gives_way_to_a_new_one() {
    let flags =
        ["--max-connections", "4", "--idle-timeout", "500ms", "--write-stall-timeout", "1s"];
    let cluster = Cluster::start(&flags);
    let polite = Polite::start(cluster.address(), None).await;
    let (mut greedy, mut calls) = (Vec::new(), Vec::new());
    for path in [
        "stoker.v1.Inference/Generate",
        "stoker.v1.Control/ListModels",
        "stoker.v1.Inference/Generate",
    ] {
        let tcp = TcpStream::connect(cluster.address()).await.unwrap();
        let mut settings = h2::client::Builder::new();
        let (client, connection) = settings.initial_window_size(0).handshake(tcp).await.unwrap();
        greedy.push(tokio::spawn(connection));
        let mut client = client.ready().await.unwrap();
        let mut call = call(cluster.address());
        *call.uri_mut() = format!("http://{}/{path}", cluster.address()).parse().unwrap();
        let (response, mut body) = client.send_request(call, false).unwrap();
        body.send_data(Bytes::from_static(b"\0\0\0\0\x03\x0a\x01x"), true).unwrap();
        calls.push((client, response, body));
    }
    for _ in 0..2 {
        let client = Client::connect(&cluster.address().parse().unwrap()).await.unwrap();
        let served = timeout(TEST_TIMEOUT, generate(&client, request("Once", 1, 2))).await;
        assert_eq!(served.unwrap().unwrap(), 2);
    }
    polite.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_has_a_maximum_of_memory() {
    let keys = Keys::new();
    let (greedy, polite) = (keys.create("greedy").await, keys.create("polite").await);
    let path = keys.path();
    let flags = ["--api-keys", path.to_str().unwrap(), "--tenant-max-request-memory", "256KiB"];
    let cluster = Cluster::start(&flags);
    let polite = Polite::start(cluster.address(), Some(&polite)).await;
    let body = json!({ "prompt": "word ".repeat(100_000), "max_tokens": 1 });
    let (status, _, response) =
        post(&cluster.router, "/v1/completions", Some(&greedy), &body).await;
    assert_eq!(status, 400, "{response}");
    let message = response["error"]["message"].as_str().unwrap();
    assert!(message.contains("262144 (--tenant-max-request-memory)"), "{message}");
    polite.unharmed().await;
}

/// The table has every limit of `--help` with its default, and each row names a test that exists.
#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_limits_is_complete() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let table = std::fs::read_to_string(root.join("docs/limits.md")).unwrap();
    for name in ["stoker-router", "stoker-worker"] {
        let mut help = program(name);
        help.arg("--help");
        let (_, help, _) = output(help).await;
        let limits = format!("\n{}", help.split("\nLimits:\n").nth(1).unwrap());
        let end = limits.find("\n\n\n").or_else(|| {
            limits
                .match_indices('\n')
                .map(|(at, _)| at)
                .find(|at| limits[at + 1..].chars().next().is_some_and(|c| c.is_ascii_uppercase()))
        });
        let limits = &limits[..end.unwrap_or(limits.len())];
        let mut flags = 0;
        for option in limits.split("\n      --").skip(1) {
            let flag = format!("--{}", option.split_whitespace().next().unwrap());
            if flag == "--accept-routing" {
                continue;
            }
            let row = table.lines().find(|line| line.starts_with(&format!("| `{flag}`")));
            let row =
                row.unwrap_or_else(|| panic!("docs/limits.md has no row for {flag} of {name}"));
            if let Some((_, default)) = option.split_once("[default: ") {
                let default = default.split(']').next().unwrap().split_whitespace();
                let default = default.collect::<Vec<_>>().join(" ");
                let short = default.split([';', ',']).next().unwrap();
                assert!(row.contains(short), "{flag} of {name}: {default:?} is not in {row}");
            }
            flags += 1;
        }
        assert!(flags >= 13, "{name}: {limits}");
    }
    let mut rows = 0;
    for row in table.lines().filter(|line| line.starts_with("| `--")) {
        let test = row.rsplit("](").next().unwrap();
        let (file, name) = (test.split(')').next().unwrap(), row.rsplit('[').next().unwrap());
        let name = name.split(']').next().unwrap().trim_matches('`');
        let source = std::fs::read_to_string(root.join("docs").join(file));
        let source = source.unwrap_or_else(|error| panic!("{row}: {file}: {error}"));
        assert!(source.contains(&format!("fn {name}(")), "{row}: no test {name} in {file}");
        rows += 1;
    }
    assert!(rows >= 20, "{rows}");
}

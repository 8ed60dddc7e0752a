//! Peers that hold resources without using them: unfinished requests, idle sockets, unread
//! responses. What a process holds for them is bounded, other clients are served meanwhile, and all
//! of it is released at the end.

use std::{fs, process::Command, time::Duration};

use bytes::Bytes;
use futures::future::try_join_all;
use h2::client::SendRequest;
use http::Request;
use prost::Message;
use stoker_proto::v1::WatchLoadRequest;
use tokio::{net::TcpStream, time::timeout};
use tonic::Code;

use crate::{
    fault_case::FaultCase,
    fleet::{
        Fleet, STEADY, addresses, peak_memory, router, simulated, wait_for_workers, wait_idle,
        wait_router_idle,
    },
    support::{Process, TEST_TIMEOUT, complete, control, inference, program, request, scrape},
    wire::message,
};

/// The load of well-behaved clients.
const HEALTHY_LOAD: &str = "--requests 60 --concurrency 60 --synthetic 16:150";
/// Length in bytes of a message just below the size limit.
const LONG_MESSAGE: usize = (4 << 20) - 64;
/// Number of uploads on one connection.
const UPLOADS: usize = 150;

/// Opens a connection with an initial stream window of `window` bytes.
async fn connect(address: &str, window: u32) -> SendRequest<Bytes> {
    let socket = TcpStream::connect(address).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window).initial_connection_window_size(1 << 20);
    let (calls, connection) = builder.handshake(socket).await.unwrap();
    tokio::spawn(connection);
    calls
}

fn generate(address: &str) -> Request<()> {
    call(address, "/stoker.v1.Inference/Generate")
}

fn call(address: &str, path: &str) -> Request<()> {
    Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

/// Waits until a metric sample of the process satisfies `wanted`.
async fn wait_for_sample(process: &Process, sample: &str, wanted: impl Fn(f64) -> bool) {
    let poll = async {
        loop {
            if scrape(process).await.get(sample).is_some_and(|value| wanted(*value)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(
        timeout(TEST_TIMEOUT, poll).await.is_ok(),
        "{sample} does not reach the expected value"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_do_not_finish() {
    let case =
        FaultCase::new("150 unfinished requests of 4 MiB on one connection", HEALTHY_LOAD).await;
    let flags = ["--request-read-timeout", "4s", "--metrics-listen", "127.0.0.1:0"];
    let workers = vec![simulated(STEADY, &flags)];
    let router = router(&addresses(&workers), &flags[..2]);
    wait_for_workers(&router, &workers).await;
    let before = peak_memory(&router).max(peak_memory(&workers[0]));
    let mut uploads = Vec::new();
    let results = case
        .start(&router.address)
        .during(async {
            for address in [&router.address, &workers[0].address] {
                let calls = connect(address, 1 << 20).await;
                for _ in 0..UPLOADS {
                    let mut calls = calls.clone().ready().await.unwrap();
                    let (response, mut upload) =
                        calls.send_request(generate(address), false).unwrap();
                    // All but its last byte.
                    let body = message(0, LONG_MESSAGE, &vec![b'x'; LONG_MESSAGE - 1]);
                    upload.send_data(body.into(), false).unwrap();
                    uploads.push((calls, response, upload));
                }
            }
        })
        .await;
    results.assert_unaffected();
    for process in [&router, &workers[0]] {
        let refused = r#"stoker_incomplete_requests_refused_total{cause="timeout"}"#;
        wait_for_sample(process, refused, |count| count >= UPLOADS as f64).await;
        // Sixteen requests of a connection, and what HTTP/2 buffers before the server reads it.
        let peak = peak_memory(process);
        assert!(peak < before + 64, "{peak} MiB, and {before} before");
    }
    wait_router_idle(&router).await;
    wait_for_sample(&router, "stoker_router_request_memory_bytes", |held| held == 0.0).await;
    wait_idle(&workers[0]).await;
    let note = format!(
        "the router needs {} MiB, the worker {}; refused after --request-read-timeout",
        peak_memory(&router),
        peak_memory(&workers[0])
    );
    case.report(&results, None, &note);
}

/// Starts a program with a limit of `files` open files.
fn with_open_file_limit(files: u32, name: &str, arguments: &[&str]) -> Process {
    let mut command = Command::new("sh");
    let script = format!("ulimit -n {files}; exec \"$0\" \"$@\"");
    command.env_clear().args(["-c", &script]).arg(program(name).get_program()).args(arguments);
    Process::spawn(command)
}

/// CPU time of a process, in seconds.
fn cpu_seconds(process: &Process) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // Linux reports ticks of 10 ms.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_are_silent() {
    let case =
        FaultCase::new("200 silent sockets with a limit of 60 open files", HEALTHY_LOAD).await;
    let workers = vec![simulated(STEADY, &[])];
    let addresses = addresses(&workers);
    let flags = ["--metrics-listen", "127.0.0.1:0", "--request-read-timeout", "1s"];
    let router = with_open_file_limit(
        60,
        "stoker-router",
        &[&["--workers", addresses.as_str()][..], &flags].concat(),
    );
    wait_for_workers(&router, &workers).await;
    let before = cpu_seconds(&router);
    let mut silent = Vec::new();
    for _ in 0..200 {
        // Beyond the system's backlog, a connection is not even refused.
        match timeout(Duration::from_millis(50), TcpStream::connect(&router.address)).await {
            Ok(socket) => silent.push(socket.unwrap()),
            Err(_) => break,
        }
    }
    let results = case.start(&router.address).end().await;
    results.assert_unaffected();
    let used = cpu_seconds(&router) - before;
    assert!(used < 10.0, "{used} s of CPU time");
    let metrics = scrape(&router).await;
    let closed = metrics[r#"stoker_connections_closed_total{cause="handshake"}"#];
    assert!(closed >= 60.0, "{closed}");
    wait_router_idle(&router).await;
    case.report(&results, None, "served once the handshakes of the silent sockets time out");
}

/// Opens `count` calls whose responses cannot be sent because their stream windows are 0.
async fn open_unread_calls(
    address: &str,
    count: u64,
) -> (SendRequest<Bytes>, Vec<h2::client::ResponseFuture>) {
    let calls = connect(address, 0).await;
    let mut responses = Vec::new();
    for seed in 0..count {
        let mut calls = calls.clone().ready().await.unwrap();
        let long = request("Once upon a time", seed, 400).encode_to_vec();
        let (response, mut upload) = calls.send_request(generate(address), false).unwrap();
        upload.send_data(message(0, long.len(), &long).into(), true).unwrap();
        responses.push(response);
    }
    (calls, responses)
}

#[tokio::test(flavor = "multi_thread")]
async fn load_reports_are_not_read() {
    let case =
        FaultCase::new("clients that do not read load reports, up to the limit", HEALTHY_LOAD)
            .await;
    let flags = ["--metrics-listen", "127.0.0.1:0", "--write-stall-timeout", "2s"];
    let workers = vec![simulated(STEADY, &flags)];
    let router = router(&addresses(&workers), &[]);
    let fleet = Fleet { workers, router };
    fleet.wait_for_workers().await;
    let address = &fleet.workers[0].address;
    let results = case
        .start(&fleet.router.address)
        .during(async {
            let calls = connect(address, 0).await;
            let mut reports = Vec::new();
            // The router has opened one of the 128.
            for _ in 0..127 {
                let mut calls = calls.clone().ready().await.unwrap();
                let watch = call(address, "/stoker.v1.Control/WatchLoad");
                let (response, mut upload) = calls.send_request(watch, false).unwrap();
                upload.send_data(message(0, 0, &[]).into(), true).unwrap();
                reports.push(response);
            }
            let reports = try_join_all(reports).await.unwrap();
            let mut control = control(address).await;
            let refused = control.watch_load(WatchLoadRequest::default()).await.unwrap_err();
            assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
            let stalls = "stoker_write_stalls_total";
            wait_for_sample(&fleet.workers[0], stalls, |count| count == 127.0).await;
            assert!(control.watch_load(WatchLoadRequest::default()).await.is_ok());
            drop(reports);
        })
        .await;
    results.assert_unaffected();
    fleet.wait_idle().await;
    case.report(&results, None, "their slots are free after --write-stall-timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_are_not_read() {
    let case = FaultCase::new(
        "clients that do not read responses, one for each slot of a worker",
        HEALTHY_LOAD,
    )
    .await;
    let slots = ["--max-num-seqs", "16", "--max-num-queued-reqs", "0"];
    let flags = ["--metrics-listen", "127.0.0.1:0", "--write-stall-timeout", "6s"];
    let arguments = ["--simulate", "step = '2ms'"];
    let worker = Process::start("stoker-worker", &[&arguments[..], &slots, &flags].concat());
    let router = router(&worker.address, &flags[2..]);
    let fleet = Fleet { workers: vec![worker], router };
    fleet.wait_for_workers().await;
    for address in [&fleet.workers[0].address, &fleet.router.address] {
        let (calls, responses) = open_unread_calls(address, 16).await;
        // Once the engine is done, the responses hold no resources although not a byte was read.
        // Dropping one would cancel it.
        let responses = timeout(TEST_TIMEOUT, try_join_all(responses)).await.unwrap().unwrap();
        fleet.wait_idle().await;
        let mut client = inference(&fleet.workers[0].address).await;
        for seed in 0..16 {
            complete(&mut client, request("Once", seed, 4)).await.unwrap();
        }
        let stalled =
            if *address == fleet.router.address { &fleet.router } else { &fleet.workers[0] };
        wait_for_sample(stalled, "stoker_write_stalls_total", |count| count == 16.0).await;
        drop((calls, responses));
    }
    let others = Fleet::simulated(1, STEADY).await;
    let load = case.start(&others.router.address);
    let results = load.during(open_unread_calls(&others.router.address, 16)).await;
    results.assert_unaffected();
    others.wait_idle().await;
    case.report(
        &results,
        None,
        "slots are free once the engine is done; streams end after --write-stall-timeout",
    );
}

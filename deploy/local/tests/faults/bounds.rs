//! Peers that hold what they do not use: bytes, sockets, responses. What a process holds for them is bounded, others are
//! served meanwhile, and in the end it holds nothing.

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
    fleet::{
        Fleet, STEADY, addresses, at_rest, knows, nothing_in_flight, peak_memory, router, simulated,
    },
    row::Row,
    support::{PATIENCE, Process, answer, control, inference, program, request, scrape},
    wire::message,
};

/// Clients that keep the rules.
const OTHERS: &str = "--requests 60 --concurrency 60 --synthetic 16:150";
/// A message that is almost as long as allowed.
const LONG: usize = (4 << 20) - 64;
/// Uploads of one connection.
const UPLOADS: usize = 150;

/// A connection whose streams may be sent `window` bytes each.
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

/// Waits until a sample of the process is as `wanted`.
async fn becomes(process: &Process, sample: &str, wanted: impl Fn(f64) -> bool) {
    let poll = async {
        loop {
            if scrape(process).await.get(sample).is_some_and(|value| wanted(*value)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(PATIENCE, poll).await.is_ok(), "{sample} does not come to be as expected");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_do_not_end() {
    let row = Row::new("150 requests of 4 MiB that do not end, on one connection", OTHERS).await;
    let flags = ["--request-read-timeout", "4s", "--metrics-listen", "127.0.0.1:0"];
    let workers = vec![simulated(STEADY, &flags)];
    let router = router(&addresses(&workers), &flags[..2]);
    knows(&router, &workers).await;
    let before = peak_memory(&router).max(peak_memory(&workers[0]));
    let mut kept = Vec::new();
    let seen = row
        .start(&router.address)
        .during(async {
            for address in [&router.address, &workers[0].address] {
                let calls = connect(address, 1 << 20).await;
                for _ in 0..UPLOADS {
                    let mut calls = calls.clone().ready().await.unwrap();
                    let (response, mut upload) =
                        calls.send_request(generate(address), false).unwrap();
                    // All but its last byte.
                    let body = message(0, LONG, &vec![b'x'; LONG - 1]);
                    upload.send_data(body.into(), false).unwrap();
                    kept.push((calls, response, upload));
                }
            }
        })
        .await;
    seen.nobody_noticed();
    for process in [&router, &workers[0]] {
        let refused = r#"stoker_incomplete_requests_refused_total{cause="timeout"}"#;
        becomes(process, refused, |count| count >= UPLOADS as f64).await;
        // Sixteen of one connection, and what HTTP/2 lets through before anybody looks at it.
        let peak = peak_memory(process);
        assert!(peak < before + 64, "{peak} MiB, and {before} before");
    }
    nothing_in_flight(&router).await;
    becomes(&router, "stoker_router_request_memory_bytes", |held| held == 0.0).await;
    at_rest(&workers[0]).await;
    let note = format!(
        "the router needs {} MiB, the worker {}; refused after --request-read-timeout",
        peak_memory(&router),
        peak_memory(&workers[0])
    );
    row.tell(&seen, None, &note);
}

/// A program that may open `files` files.
fn with_files(files: u32, name: &str, arguments: &[&str]) -> Process {
    let mut command = Command::new("sh");
    let script = format!("ulimit -n {files}; exec \"$0\" \"$@\"");
    command.env_clear().args(["-c", &script]).arg(program(name).get_program()).args(arguments);
    Process::spawn(command)
}

/// Seconds of a processor that a process has used.
fn processor_seconds(process: &Process) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // In hundredths, which every Linux has.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_say_nothing() {
    let row = Row::new("200 sockets that say nothing, where 60 files may be open", OTHERS).await;
    let workers = vec![simulated(STEADY, &[])];
    let addresses = addresses(&workers);
    let flags = ["--metrics-listen", "127.0.0.1:0", "--request-read-timeout", "1s"];
    let router =
        with_files(60, "stoker-router", &[&["--workers", addresses.as_str()][..], &flags].concat());
    knows(&router, &workers).await;
    let before = processor_seconds(&router);
    let mut silent = Vec::new();
    for _ in 0..200 {
        // Beyond the queue of the system, a connection is not even refused.
        match timeout(Duration::from_millis(50), TcpStream::connect(&router.address)).await {
            Ok(socket) => silent.push(socket.unwrap()),
            Err(_) => break,
        }
    }
    let seen = row.start(&router.address).end().await;
    seen.nobody_noticed();
    let used = processor_seconds(&router) - before;
    assert!(used < 10.0, "{used} s of a processor");
    let metrics = scrape(&router).await;
    let closed = metrics[r#"stoker_connections_closed_total{cause="handshake"}"#];
    assert!(closed >= 60.0, "{closed}");
    nothing_in_flight(&router).await;
    row.tell(&seen, None, "served once the handshake of the silent ones has timed out");
}

/// Opens `count` calls whose responses nobody can send: their streams have a window of nothing.
async fn take_nothing(
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
async fn reports_are_not_taken() {
    let row = Row::new("clients that take no reports of the load, as many as may", OTHERS).await;
    let flags = ["--metrics-listen", "127.0.0.1:0", "--write-stall-timeout", "2s"];
    let workers = vec![simulated(STEADY, &flags)];
    let router = router(&addresses(&workers), &[]);
    let fleet = Fleet { workers, router };
    fleet.complete().await;
    let address = &fleet.workers[0].address;
    let seen = row
        .start(&fleet.router.address)
        .during(async {
            let calls = connect(address, 0).await;
            let mut reports = Vec::new();
            // The router has one open already.
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
            becomes(&fleet.workers[0], stalls, |count| count == 127.0).await;
            assert!(control.watch_load(WatchLoadRequest::default()).await.is_ok());
            drop(reports);
        })
        .await;
    seen.nobody_noticed();
    fleet.at_rest().await;
    row.tell(&seen, None, "their places are free after --write-stall-timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_are_not_taken() {
    let row = Row::new("clients that take nothing, as many as a worker has slots", OTHERS).await;
    let slots = ["--max-num-seqs", "16", "--max-num-queued-reqs", "0"];
    let flags = ["--metrics-listen", "127.0.0.1:0", "--write-stall-timeout", "6s"];
    let arguments = ["--simulate", "step = '2ms'"];
    let worker = Process::start("stoker-worker", &[&arguments[..], &slots, &flags].concat());
    let router = router(&worker.address, &flags[2..]);
    let fleet = Fleet { workers: vec![worker], router };
    fleet.complete().await;
    for address in [&fleet.workers[0].address, &fleet.router.address] {
        let (calls, responses) = take_nothing(address, 16).await;
        // Once the engine is done nothing is held for them, although they have not read a byte.
        // To let go of one would be to cancel it.
        let responses = timeout(PATIENCE, try_join_all(responses)).await.unwrap().unwrap();
        fleet.at_rest().await;
        let mut client = inference(&fleet.workers[0].address).await;
        for seed in 0..16 {
            answer(&mut client, request("Once", seed, 4)).await.unwrap();
        }
        let stalled =
            if *address == fleet.router.address { &fleet.router } else { &fleet.workers[0] };
        becomes(stalled, "stoker_write_stalls_total", |count| count == 16.0).await;
        drop((calls, responses));
    }
    let others = Fleet::simulated(1, STEADY).await;
    let load = row.start(&others.router.address);
    let seen = load.during(take_nothing(&others.router.address, 16)).await;
    seen.nobody_noticed();
    others.at_rest().await;
    row.tell(
        &seen,
        None,
        "slots are free once the engine is done; given up after --write-stall-timeout",
    );
}

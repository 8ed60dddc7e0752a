//! Peers that break the rules, and peers that keep them to do harm. Everybody else must be served meanwhile.

use bytes::Bytes;
use http::Request;
use prost::Message;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    fault_case::FaultCase,
    fleet::{Fleet, STEADY, peak_memory, wait_mid_stream},
    support::{TEST_TIMEOUT, request},
    wire::{
        END_HEADERS, END_STREAM, Ending, Kind, MAX_FRAME, PREFACE, Wire, call_headers, frame,
        message, raw_frame,
    },
};

/// Clients that keep the rules.
const HEALTHY_LOAD: &str = "--requests 60 --concurrency 60 --synthetic 16:150";
/// Streams that are opened and reset at once.
const RESETS: u32 = 20_000;
/// What a server may need for all that a client does to it, in MiB. It is far less; a leak is far more.
const BOUND: u64 = 256;

/// Bytes after a connection's beginning that break a rule, and what they are.
fn broken() -> Vec<(&'static str, Vec<u8>)> {
    let headers = call_headers();
    let open = frame(Kind::Headers, END_HEADERS, 1, &headers);
    let long = vec![0; MAX_FRAME + 1];
    vec![
        ("a frame longer than allowed", frame(Kind::Data, 0, 1, &long)),
        ("a frame that says 16 MiB", raw_frame(0, 0, 1, (1 << 24) - 1, &[])),
        ("an index that no table has", frame(Kind::Headers, END_HEADERS, 1, &[0xff, 0xff, 0x7f])),
        ("a header that ends early", frame(Kind::Headers, END_HEADERS, 1, &[0, 0x7f, b'a'])),
        ("headers on an even stream", frame(Kind::Headers, END_HEADERS, 2, &headers)),
        ("headers on no stream", frame(Kind::Headers, END_HEADERS, 0, &headers)),
        ("data on no stream", frame(Kind::Data, 0, 0, b"x")),
        ("data on a stream that is not open", frame(Kind::Data, 0, 7, b"x")),
        ("more headers than begun", frame(Kind::Continuation, END_HEADERS, 1, &headers)),
        (
            "data amid headers",
            [frame(Kind::Headers, 0, 1, &headers), frame(Kind::Data, 0, 1, b"x")].concat(),
        ),
        ("settings of five bytes", frame(Kind::Settings, 0, 0, &[0; 5])),
        ("a ping of seven bytes", frame(Kind::Ping, 0, 0, &[0; 7])),
        ("a window that grows by nothing", frame(Kind::WindowUpdate, 0, 0, &[0; 4])),
        ("a window beyond 2 GiB", frame(Kind::WindowUpdate, 0, 0, &0x7fff_ffff_u32.to_be_bytes())),
        ("a reset of an idle stream", frame(Kind::Reset, 0, 9, &[0, 0, 0, 8])),
        (
            "a stream that goes backwards",
            [
                frame(Kind::Headers, END_HEADERS, 5, &headers),
                frame(Kind::Headers, END_HEADERS, 3, &headers),
            ]
            .concat(),
        ),
        ("padding longer than the frame", [open, raw_frame(0, 8, 1, 1, &[9])].concat()),
        (
            "headers without an end",
            std::iter::once(frame(Kind::Headers, 0, 1, &headers))
                .chain((0..2_000).map(|_| frame(Kind::Continuation, 0, 1, &headers)))
                .flatten()
                .collect(),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_are_malformed() {
    let case = FaultCase::new("malformed frames", HEALTHY_LOAD).await;
    let fleet = Fleet::simulated(1, STEADY).await;
    let results = case
        .start(&fleet.router.address)
        .during(async {
            for address in [&fleet.router.address, &fleet.workers[0].address] {
                for garbage in [&b"GET / HTTP/1.1\r\nHost: stoker\r\n\r\n"[..], &[0xff; 100]] {
                    let mut wire = Wire::silent(address).await;
                    wire.say(garbage).await;
                    wire.ending().await;
                }
                for (what, bytes) in broken() {
                    let mut wire = Wire::new(address).await;
                    wire.say(&bytes).await;
                    let ending = wire.ending().await;
                    // No error would be an answer to something else.
                    assert_ne!(ending, Ending::GoAway(0), "{what}");
                    eprintln!("{what}: {ending:?}");
                }
            }
        })
        .await;
    results.assert_unaffected();
    fleet.wait_idle().await;
    case.report(
        &results,
        None,
        "GOAWAY or a closed connection for each; clients that keep the rules",
    );
}

/// The status of a call with this body, as its headers or trailers have it; `None` for a stream that was reset.
async fn status_of(address: &str, path: &str, body: Vec<u8>) -> Option<u32> {
    let socket = TcpStream::connect(address).await.unwrap();
    let (mut calls, connection) = h2::client::handshake(socket).await.unwrap();
    let driver = tokio::spawn(connection);
    let call = Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut upload) = calls.send_request(call, false).unwrap();
    upload.send_data(Bytes::from(body), true).unwrap();
    let completion = async {
        let response = response.await.ok()?;
        let read =
            |headers: &http::HeaderMap| headers["grpc-status"].to_str().unwrap().parse().ok();
        if response.headers().contains_key("grpc-status") {
            return read(response.headers());
        }
        let mut body = response.into_body();
        while let Some(data) = body.data().await {
            let _ = body.flow_control().release_capacity(data.ok()?.len());
        }
        body.trailers().await.ok()?.as_ref().and_then(read)
    };
    let status = timeout(TEST_TIMEOUT, completion).await.unwrap();
    driver.abort();
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_malformed() {
    let case = FaultCase::new("malformed messages", HEALTHY_LOAD).await;
    let fleet = Fleet::simulated(1, STEADY).await;
    let good = request("Once", 1, 4).encode_to_vec();
    // The prompt is field 3: two bytes that no UTF-8 has.
    let text = [0x1a, 2, 0xff, 0xfe];
    let bodies = [
        ("no protobuf", message(0, 5, &[0xff; 5])),
        ("a field that ends early", message(0, 2, &[0x1a, 100])),
        ("text that is no UTF-8", message(0, text.len(), &text)),
        ("a message that ends early", message(0, good.len() + 10, &good)),
        ("a message that says 4 GiB", message(0, u32::MAX as usize, &good)),
        ("compressed, and nothing says how", message(1, good.len(), &good)),
        ("a flag that there is not", message(7, good.len(), &good)),
        ("nothing at all", Vec::new()),
        ("half of a head", vec![0, 0, 0]),
    ];
    let generate = "/stoker.v1.Inference/Generate";
    let results = case
        .start(&fleet.router.address)
        .during(async {
            for address in [&fleet.router.address, &fleet.workers[0].address] {
                for (what, body) in &bodies {
                    let status = status_of(address, generate, body.clone()).await;
                    eprintln!("{what}: {status:?}");
                    assert!(status.is_some_and(|status| status != 0), "{what}: {status:?}");
                }
                let unknown = status_of(address, "/stoker.v1.Inference/Guess", good.clone()).await;
                assert_eq!(unknown, Some(12), "UNIMPLEMENTED");
                let fine = status_of(address, generate, message(0, good.len(), &good)).await;
                assert_eq!(fine, Some(0));
            }
        })
        .await;
    results.assert_unaffected();
    fleet.wait_idle().await;
    case.report(&results, None, "a status for each; clients that keep the rules");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_reset_as_soon_as_they_are_opened() {
    let case = FaultCase::new("rapid reset: 20,000 streams opened and reset", HEALTHY_LOAD).await;
    let fleet = Fleet::simulated(1, STEADY).await;
    let load = case.start(&fleet.router.address);
    let long = request("Once upon a time", 1, 4_000).encode_to_vec();
    let body = message(0, long.len(), &long);
    let headers = call_headers();
    let mut endings = Vec::new();
    let results = load
        .during(async {
            wait_mid_stream(&fleet.workers[0], 60, 5).await;
            for address in [&fleet.router.address, &fleet.workers[0].address] {
                let mut wire = Wire::new(address).await;
                let mut opened = 0;
                while opened < RESETS {
                    // As many to a packet as a client in a hurry would send.
                    let batch: Vec<u8> = (0..100)
                        .flat_map(|i| {
                            let stream = 2 * (opened + i) + 1;
                            [
                                frame(Kind::Headers, END_HEADERS, stream, &headers),
                                frame(Kind::Data, END_STREAM, stream, &body),
                                frame(Kind::Reset, 0, stream, &8_u32.to_be_bytes()),
                            ]
                            .concat()
                        })
                        .collect();
                    if !wire.say(&batch).await {
                        break;
                    }
                    opened += 100;
                }
                endings.push(opened);
            }
        })
        .await;
    results.assert_unaffected();
    fleet.wait_idle().await;
    let (router, worker) = (peak_memory(&fleet.router), peak_memory(&fleet.workers[0]));
    assert!(router < BOUND && worker < BOUND, "{router} MiB and {worker} MiB");
    let note = format!(
        "clients that keep the rules; router and worker took {endings:?} of them, with at most {router} and {worker} MiB"
    );
    case.report(&results, None, &note);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_do_not_read() {
    let case = FaultCase::new("clients that do not read", HEALTHY_LOAD).await;
    let fleet = Fleet::simulated(1, STEADY).await;
    let load = case.start(&fleet.router.address);
    let long = request("Once upon a time", 1, 2_000).encode_to_vec();
    let body = message(0, long.len(), &long);
    let mut slow = Vec::new();
    let results = load
        .during(async {
            // A window of nothing, of one byte, and a usual one whose bytes nobody takes off the socket.
            for window in [0, 1, 65_535] {
                let mut wire =
                    Wire::with_settings(&fleet.router.address, &[(INITIAL_WINDOW_SIZE, window)])
                        .await;
                for stream in (1..100).step_by(2) {
                    wire.say(&frame(Kind::Headers, END_HEADERS, stream, &call_headers())).await;
                    wire.say(&frame(Kind::Data, END_STREAM, stream, &body)).await;
                }
                slow.push(wire);
            }
            wait_mid_stream(&fleet.workers[0], 100, 20).await;
        })
        .await;
    results.assert_unaffected();
    let router = peak_memory(&fleet.router);
    assert!(router < BOUND, "{router} MiB");
    drop(slow);
    fleet.wait_idle().await;
    let note =
        format!("150 streams beside those that are read; the router needs at most {router} MiB");
    case.report(&results, None, &note);
}

/// The setting of a stream's first window, in bytes.
const INITIAL_WINDOW_SIZE: u16 = 4;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn connections_that_say_nothing_are_many() {
    let case = FaultCase::new("2,000 connections that say nothing", HEALTHY_LOAD).await;
    let fleet = Fleet::simulated(1, STEADY).await;
    let mut silent = Vec::new();
    let results = case
        .start(&fleet.router.address)
        .during(async {
            for i in 0..2_000 {
                let mut wire = Wire::silent(&fleet.router.address).await;
                // Some begin to speak.
                wire.say(&PREFACE[..i % PREFACE.len()]).await;
                silent.push(wire);
            }
        })
        .await;
    results.assert_unaffected();
    let router = peak_memory(&fleet.router);
    assert!(router < BOUND, "{router} MiB");
    fleet.wait_idle().await;
    case.report(&results, None, &format!("the router needs at most {router} MiB"));
}

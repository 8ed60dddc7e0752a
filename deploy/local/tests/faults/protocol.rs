//! Peers that violate the protocol, and peers that abuse it within its rules. Other clients must be
//! served meanwhile.

use bytes::Bytes;
use http::Request;
use prost::Message;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    fault_case::FaultCase,
    fleet::{Fleet, STEADY, peak_memory, wait_mid_stream},
    support::{TEST_TIMEOUT, request},
    wire::{
        END_HEADERS, END_STREAM, Ending, FrameKind, MAX_FRAME, PREFACE, Wire, call_headers, frame,
        message, raw_frame,
    },
};

/// The load of well-behaved clients.
const HEALTHY_LOAD: &str = "--requests 60 --concurrency 60 --synthetic 16:150";
/// Number of streams that are opened and immediately reset.
const RAPID_RESETS: u32 = 20_000;
/// Limit of a server's peak memory, in MiB. It needs far less; a leak would need far more.
const MAX_MEMORY: u64 = 256;

/// Byte sequences that violate HTTP/2 when sent after the connection preface, with descriptions.
fn protocol_violations() -> Vec<(&'static str, Vec<u8>)> {
    let headers = call_headers();
    let open = frame(FrameKind::Headers, END_HEADERS, 1, &headers);
    let long = vec![0; MAX_FRAME + 1];
    vec![
        ("a frame longer than allowed", frame(FrameKind::Data, 0, 1, &long)),
        ("a frame that announces 16 MiB", raw_frame(0, 0, 1, (1 << 24) - 1, &[])),
        (
            "a header index outside the table",
            frame(FrameKind::Headers, END_HEADERS, 1, &[0xff, 0xff, 0x7f]),
        ),
        ("a truncated header", frame(FrameKind::Headers, END_HEADERS, 1, &[0, 0x7f, b'a'])),
        ("headers on an even stream", frame(FrameKind::Headers, END_HEADERS, 2, &headers)),
        ("headers on stream 0", frame(FrameKind::Headers, END_HEADERS, 0, &headers)),
        ("data on stream 0", frame(FrameKind::Data, 0, 0, b"x")),
        ("data on a stream that is not open", frame(FrameKind::Data, 0, 7, b"x")),
        (
            "a continuation without headers",
            frame(FrameKind::Continuation, END_HEADERS, 1, &headers),
        ),
        (
            "data between headers and their continuation",
            [frame(FrameKind::Headers, 0, 1, &headers), frame(FrameKind::Data, 0, 1, b"x")]
                .concat(),
        ),
        ("settings of five bytes", frame(FrameKind::Settings, 0, 0, &[0; 5])),
        ("a ping of seven bytes", frame(FrameKind::Ping, 0, 0, &[0; 7])),
        ("a window update of 0", frame(FrameKind::WindowUpdate, 0, 0, &[0; 4])),
        (
            "a window beyond 2 GiB",
            frame(FrameKind::WindowUpdate, 0, 0, &0x7fff_ffff_u32.to_be_bytes()),
        ),
        ("a reset of an idle stream", frame(FrameKind::Reset, 0, 9, &[0, 0, 0, 8])),
        (
            "a stream id lower than before",
            [
                frame(FrameKind::Headers, END_HEADERS, 5, &headers),
                frame(FrameKind::Headers, END_HEADERS, 3, &headers),
            ]
            .concat(),
        ),
        ("padding longer than the frame", [open, raw_frame(0, 8, 1, 1, &[9])].concat()),
        (
            "endless continuations",
            std::iter::once(frame(FrameKind::Headers, 0, 1, &headers))
                .chain((0..2_000).map(|_| frame(FrameKind::Continuation, 0, 1, &headers)))
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
                    wire.send(garbage).await;
                    wire.ending().await;
                }
                for (what, bytes) in protocol_violations() {
                    let mut wire = Wire::new(address).await;
                    wire.send(&bytes).await;
                    let ending = wire.ending().await;
                    // GOAWAY with NO_ERROR would not be a response to the violation.
                    assert_ne!(ending, Ending::GoAway(0), "{what}");
                    eprintln!("{what}: {ending:?}");
                }
            }
        })
        .await;
    results.assert_unaffected();
    fleet.wait_idle().await;
    case.report(&results, None, "GOAWAY or a closed connection for each; well-behaved clients");
}

/// Returns the status of a call with this body from its headers or trailers; `None` for a stream
/// that was reset.
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
    let response = async {
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
    let status = timeout(TEST_TIMEOUT, response).await.unwrap();
    driver.abort();
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_malformed() {
    let case = FaultCase::new("malformed messages", HEALTHY_LOAD).await;
    let fleet = Fleet::simulated(1, STEADY).await;
    let good = request("Once", 1, 4).encode_to_vec();
    // Field 3, the prompt, with two bytes that are not valid UTF-8.
    let text = [0x1a, 2, 0xff, 0xfe];
    let bodies = [
        ("no protobuf", message(0, 5, &[0xff; 5])),
        ("a truncated field", message(0, 2, &[0x1a, 100])),
        ("text that is not UTF-8", message(0, text.len(), &text)),
        ("a truncated message", message(0, good.len() + 10, &good)),
        ("a message that announces 4 GiB", message(0, u32::MAX as usize, &good)),
        ("compressed without grpc-encoding", message(1, good.len(), &good)),
        ("an unknown flag", message(7, good.len(), &good)),
        ("an empty body", Vec::new()),
        ("a truncated message prefix", vec![0, 0, 0]),
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
                let unknown =
                    status_of(address, "/stoker.v1.Inference/NoSuchMethod", good.clone()).await;
                assert_eq!(unknown, Some(12), "UNIMPLEMENTED");
                let fine = status_of(address, generate, message(0, good.len(), &good)).await;
                assert_eq!(fine, Some(0));
            }
        })
        .await;
    results.assert_unaffected();
    fleet.wait_idle().await;
    case.report(&results, None, "a status for each; well-behaved clients");
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
                while opened < RAPID_RESETS {
                    // A batch of 100 streams for each write.
                    let batch: Vec<u8> = (0..100)
                        .flat_map(|i| {
                            let stream = 2 * (opened + i) + 1;
                            [
                                frame(FrameKind::Headers, END_HEADERS, stream, &headers),
                                frame(FrameKind::Data, END_STREAM, stream, &body),
                                frame(FrameKind::Reset, 0, stream, &8_u32.to_be_bytes()),
                            ]
                            .concat()
                        })
                        .collect();
                    if !wire.send(&batch).await {
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
    assert!(router < MAX_MEMORY && worker < MAX_MEMORY, "{router} MiB and {worker} MiB");
    let note = format!(
        "well-behaved clients; router and worker accepted {endings:?} streams, with at most {router} and {worker} MiB"
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
            // A window of 0, of one byte, and the usual one with a socket that is not read.
            for window in [0, 1, 65_535] {
                let mut wire =
                    Wire::with_settings(&fleet.router.address, &[(INITIAL_WINDOW_SIZE, window)])
                        .await;
                for stream in (1..100).step_by(2) {
                    wire.send(&frame(FrameKind::Headers, END_HEADERS, stream, &call_headers()))
                        .await;
                    wire.send(&frame(FrameKind::Data, END_STREAM, stream, &body)).await;
                }
                slow.push(wire);
            }
            wait_mid_stream(&fleet.workers[0], 100, 20).await;
        })
        .await;
    results.assert_unaffected();
    let router = peak_memory(&fleet.router);
    assert!(router < MAX_MEMORY, "{router} MiB");
    drop(slow);
    fleet.wait_idle().await;
    let note = format!(
        "150 unread streams beside those that are read; the router needs at most {router} MiB"
    );
    case.report(&results, None, &note);
}

/// Identifier of SETTINGS_INITIAL_WINDOW_SIZE.
const INITIAL_WINDOW_SIZE: u16 = 4;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn many_connections_are_silent() {
    let case = FaultCase::new("2,000 connections that send no request", HEALTHY_LOAD).await;
    let fleet = Fleet::simulated(1, STEADY).await;
    let mut silent = Vec::new();
    let results = case
        .start(&fleet.router.address)
        .during(async {
            for i in 0..2_000 {
                let mut wire = Wire::silent(&fleet.router.address).await;
                // Most send a part of the preface.
                wire.send(&PREFACE[..i % PREFACE.len()]).await;
                silent.push(wire);
            }
        })
        .await;
    results.assert_unaffected();
    let router = peak_memory(&fleet.router);
    assert!(router < MAX_MEMORY, "{router} MiB");
    fleet.wait_idle().await;
    case.report(&results, None, &format!("the router needs at most {router} MiB"));
}

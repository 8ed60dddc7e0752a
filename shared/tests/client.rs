//! The client of a server that shuts down.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use stoker_proto::v1::GenerateRequest;
use stoker_shared::{
    client::{Address, Client},
    deadline::Deadline,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Limit for waiting, far longer than anything here takes.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Length of what a client sends before the first frame.
const PREFACE: usize = 24;
const HEADERS: u8 = 1;
/// An empty SETTINGS frame.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
/// A GOAWAY frame that names no stream as read, without an error.
const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Waits for the headers of a call and reports that it was not read. Returns whether a call came.
async fn refuse(mut stream: TcpStream) -> bool {
    stream.write_all(&SETTINGS).await.unwrap();
    let mut preface = [0; PREFACE];
    if stream.read_exact(&mut preface).await.is_err() {
        return false;
    }
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return false;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await.unwrap();
        if head[3] == HEADERS {
            stream.write_all(&GOAWAY).await.unwrap();
            // Until the client closes it.
            let _ = stream.read_to_end(&mut Vec::new()).await;
            return true;
        }
    }
}

#[tokio::test]
async fn a_call_that_a_server_has_not_read_is_sent_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::from(listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let mut calls = 0;
        while calls < 3 {
            let (stream, _) = listener.accept().await.unwrap();
            calls += u32::from(refuse(stream).await);
        }
        calls
    });
    let client = Client::connect(&address).await.unwrap();
    let ended = client.generate(GenerateRequest::default(), Deadline::NEVER).await;
    assert!(ended.is_err(), "no server has read it");
    let calls = timeout(TEST_TIMEOUT, server).await.expect("it is sent on three connections");
    assert_eq!(calls.unwrap(), 3);
}

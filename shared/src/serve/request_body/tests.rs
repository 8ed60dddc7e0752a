//! Bodies whose bytes arrive when a test sends them, in paused time.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::future::poll_fn;

use http_body::Body as _;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tonic::Code;

use super::*;
use crate::serve::{LimitsConfig, Peer};

const TIMEOUT: Duration = Duration::from_secs(10);

/// What the network has received.
struct Received(mpsc::Receiver<Bytes>);

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0.poll_recv(cx).map(|data| data.map(|data| Ok(Frame::data(data))))
    }
}

/// A request of `peer` with a message of `length` bytes, of which the header has arrived.
fn request(peer: &Peer, bounds: &Bounds, length: usize) -> (mpsc::Sender<Bytes>, RequestBody) {
    let (sender, receiver) = mpsc::channel(8);
    let mut header = vec![0];
    header.extend(u32::try_from(length).unwrap().to_be_bytes());
    sender.try_send(header.into()).unwrap();
    let charge = Charge::new(bounds.memory());
    let body = Body::new(Received(receiver));
    let body = RequestBody::new(
        body,
        Framing::Grpc,
        bounds.clone(),
        charge,
        Some(peer.call()),
        Some(TIMEOUT),
    );
    (sender, body)
}

async fn next(body: &mut RequestBody) -> Option<Result<usize, Status>> {
    let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx));
    let frame = timeout(TIMEOUT * 100, frame).await.unwrap();
    frame.map(|frame| frame.map(|frame| frame.into_data().unwrap().len()))
}

fn fixture() -> (Peer, Bounds) {
    let peer = Peer::new(([127, 0, 0, 1], 1).into(), 0);
    (peer, Bounds::new(&LimitsConfig::default(), None))
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_end_has_a_time_limit() {
    let (peer, bounds) = fixture();
    let begun = Instant::now();
    let (sender, mut body) = request(&peer, &bounds, 100);
    assert_eq!(next(&mut body).await.unwrap().unwrap(), FRAME_HEADER);
    // Bytes now and then are no reason to wait longer.
    tokio::time::sleep(TIMEOUT / 2).await;
    sender.try_send(Bytes::from_static(b"part")).unwrap();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), 4);
    let error = next(&mut body).await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error:?}");
    assert!(error.message().contains("--request-read-timeout"), "{error:?}");
    assert!(begun.elapsed() <= TIMEOUT + TIMEOUT / 2, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn large_requests_of_a_connection_are_read_one_after_another() {
    let (peer, bounds) = fixture();
    let large = UPLOAD_KIB << 10;
    let (first_sender, mut first) = request(&peer, &bounds, large);
    next(&mut first).await.unwrap().unwrap();
    let (second_sender, mut second) = request(&peer, &bounds, large);
    next(&mut second).await.unwrap().unwrap();
    second_sender.try_send(Bytes::from_static(b"data")).unwrap();
    assert!(timeout(TIMEOUT / 2, next(&mut second)).await.is_err(), "the first is not complete");
    // A small one and one of another connection do not wait.
    let (small_sender, mut small) = request(&peer, &bounds, 100);
    next(&mut small).await.unwrap().unwrap();
    small_sender.try_send(Bytes::from_static(b"data")).unwrap();
    assert_eq!(next(&mut small).await.unwrap().unwrap(), 4);
    drop(first_sender);
    assert!(next(&mut first).await.is_none());
    assert_eq!(next(&mut second).await.unwrap().unwrap(), 4);
}

#[tokio::test(start_paused = true)]
async fn more_bytes_than_the_message_has_are_refused() {
    let (peer, bounds) = fixture();
    let (sender, mut body) = request(&peer, &bounds, 3);
    next(&mut body).await.unwrap().unwrap();
    sender.try_send(Bytes::from_static(b"data")).unwrap();
    let error = next(&mut body).await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
}

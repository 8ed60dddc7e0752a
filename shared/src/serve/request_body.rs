//! The bytes of a request on their way in.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http_body::Frame;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Sleep, sleep},
};
use tonic::{Status, body::Body};

use super::{
    bounds::Bounds,
    peer::{Peer, UPLOAD_KIB},
    requests::Charge,
};
use crate::ServiceError;

/// gRPC's frame begins with a flag and the length of the message, four bytes.
const PREFIX: usize = 5;
/// Smaller requests, in bytes, need no permit of their connection: all of its streams together bring little.
const SMALL: usize = 64 << 10;
/// Bytes that a client-streaming call may send in all.
const MOST_STREAMED: usize = 1 << 20;

/// A request's body. It is accounted for as it comes, has a limited time, and where it is large waits until the other
/// large ones of its connection are complete.
pub(super) struct RequestBody {
    body: Body,
    bounds: Bounds,
    charge: Charge,
    peer: Option<Peer>,
    prefix: Vec<u8>,
    /// The length of frame and message, once it is known.
    length: Option<usize>,
    read: usize,
    permit: Permit,
    /// `None` for a call that streams.
    timeout: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// Whether the rest of a request may be read.
enum Permit {
    /// It may; of a large one with its part of what the connection may have in progress.
    Granted(#[allow(dead_code, reason = "held")] Option<OwnedSemaphorePermit>),
    Waiting(BoxFuture<'static, Option<OwnedSemaphorePermit>>),
}

impl RequestBody {
    /// Of a call that has one message, and `timeout` for it, or that streams.
    pub(super) fn new(
        body: Body,
        bounds: Bounds,
        charge: Charge,
        peer: Option<Peer>,
        timeout: Option<Duration>,
    ) -> Self {
        Self {
            body,
            bounds,
            charge,
            peer,
            prefix: Vec::new(),
            length: None,
            read: 0,
            permit: Permit::Granted(None),
            timeout,
            timer: None,
        }
    }

    /// Takes note of `data`.
    fn came(&mut self, data: &Bytes) -> Result<(), ServiceError> {
        self.read += data.len();
        self.charge.grow(data.len() as u64).inspect_err(|_| self.bounds.refuses("memory"))?;
        let Some(_) = self.timeout else {
            return if self.read > MOST_STREAMED {
                let why = format!("more than {MOST_STREAMED} bytes in one call; make another one");
                Err(ServiceError::invalid("request", why))
            } else {
                Ok(())
            };
        };
        if self.length.is_none() {
            let missing = PREFIX - self.prefix.len();
            self.prefix.extend(data.iter().take(missing));
            if let [_, a, b, c, d] = self.prefix[..] {
                let length = PREFIX.saturating_add(u32::from_be_bytes([a, b, c, d]) as usize);
                self.length = Some(length);
                self.acquire(length);
            }
        }
        if self.length.is_some_and(|length| self.read > length) {
            self.bounds.refuses("surplus");
            let why = "more bytes came than its message has; this call takes one message";
            return Err(ServiceError::invalid("request", why));
        }
        Ok(())
    }

    /// Takes a permit to read a request of `length` bytes, or begins to wait for one.
    fn acquire(&mut self, length: usize) {
        let Some(peer) = self.peer.as_ref().filter(|_| length > SMALL) else { return };
        let uploads = Arc::clone(peer.uploads());
        let kib = (length >> 10).min(UPLOAD_KIB) as u32;
        self.permit = match Arc::clone(&uploads).try_acquire_many_owned(kib) {
            Ok(permit) => Permit::Granted(Some(permit)),
            Err(_) => {
                Permit::Waiting(async move { uploads.acquire_many_owned(kib).await.ok() }.boxed())
            }
        };
    }

    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<ServiceError> {
        let Some(timeout) = self.timeout else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(timer.as_mut().poll(cx));
        self.bounds.refuses("timeout");
        let (read, waited) = (self.read, timeout.as_secs_f64());
        let of = self.length.map(|length| format!(" of {length}")).unwrap_or_default();
        let stage = format!(
            "while the request was read: {read}{of} bytes came in {waited} s (--request-read-timeout)"
        );
        Poll::Ready(ServiceError::DeadlineExceeded { stage })
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let mut polled = Poll::Pending;
        if let Permit::Waiting(waiting) = &mut this.permit
            && let Poll::Ready(permit) = waiting.poll_unpin(cx)
        {
            this.permit = Permit::Granted(permit);
        }
        if matches!(this.permit, Permit::Granted(_)) {
            polled = Pin::new(&mut this.body).poll_frame(cx);
        }
        match polled {
            Poll::Pending => {
                let error = ready!(this.poll_late(cx));
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(Some(Ok(frame))) => {
                let noted = frame.data_ref().map_or(Ok(()), |data| this.came(data));
                Poll::Ready(Some(noted.map(|()| frame).map_err(Status::from)))
            }
            Poll::Ready(end) => {
                (this.permit, this.timer) = (Permit::Granted(None), None);
                Poll::Ready(end)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

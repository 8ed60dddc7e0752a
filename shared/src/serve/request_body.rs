//! The body of a request while it is received.

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
    charge::Charge,
    peer::{OpenCall, UPLOAD_KIB},
};
use crate::ServiceError;

/// Length of the gRPC frame header, in bytes: a flag and the length of the message.
const FRAME_HEADER: usize = 5;
/// Requests of at most this size, in bytes, need no permit, since those of all streams of a
/// connection together are small.
const SMALL_REQUEST: usize = 64 << 10;
/// Maximum total size of the messages of a client-streaming call, in bytes.
const MAX_STREAMED: usize = 1 << 20;

/// How a body says how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// One gRPC message, with its length before it.
    Grpc,
    /// The whole body, of any length up to this limit in bytes, which its reader enforces.
    Http(usize),
}

/// The body of a request. Its bytes are charged to the memory budget as they arrive, it has a time
/// limit, and a large one waits until the other large requests of its connection are complete.
pub(super) struct RequestBody {
    body: Body,
    bounds: Bounds,
    charge: Charge,
    call: Option<OpenCall>,
    framing: Framing,
    header: Vec<u8>,
    /// Length of frame header and message, once the header is known.
    length: Option<usize>,
    read: usize,
    permit: Permit,
    /// `None` for a client-streaming call.
    timeout: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// Whether the rest of a request may be read.
enum Permit {
    /// The rest may be read. A large request holds permits for its size.
    Granted(#[allow(dead_code, reason = "held")] Option<OwnedSemaphorePermit>),
    Waiting(BoxFuture<'static, Option<OwnedSemaphorePermit>>),
}

impl RequestBody {
    /// Wraps the body of a unary request with the time limit `timeout`, or of a client-streaming
    /// call without one.
    pub(super) fn new(
        body: Body,
        framing: Framing,
        bounds: Bounds,
        charge: Charge,
        call: Option<OpenCall>,
        timeout: Option<Duration>,
    ) -> Self {
        Self {
            body,
            bounds,
            charge,
            call,
            framing,
            header: Vec::new(),
            length: None,
            read: 0,
            permit: Permit::Granted(None),
            timeout,
            timer: None,
        }
    }

    /// Accounts for received data, and checks the limits.
    fn account(&mut self, data: &Bytes) -> Result<(), ServiceError> {
        self.read += data.len();
        self.charge
            .grow(data.len() as u64)
            .inspect_err(|_| self.bounds.count_rejected("memory"))?;
        let Some(_) = self.timeout else {
            return if self.read > MAX_STREAMED {
                let why = format!("more than {MAX_STREAMED} bytes in one call; start another call");
                Err(ServiceError::invalid("request", why))
            } else {
                Ok(())
            };
        };
        if let Framing::Http(limit) = self.framing {
            // Of one that is sent in chunks, the length is not known.
            if self.length.is_none() && self.read > SMALL_REQUEST {
                self.length = Some(limit);
                self.acquire(limit);
            }
            return Ok(());
        }
        if self.length.is_none() {
            let missing = FRAME_HEADER - self.header.len();
            self.header.extend(data.iter().take(missing));
            if let [_, a, b, c, d] = self.header[..] {
                let length = FRAME_HEADER.saturating_add(u32::from_be_bytes([a, b, c, d]) as usize);
                self.length = Some(length);
                self.acquire(length);
            }
        }
        if self.length.is_some_and(|length| self.read > length) {
            self.bounds.count_rejected("surplus");
            let why = "more bytes were received than its message has; this call takes one message";
            return Err(ServiceError::invalid("request", why));
        }
        Ok(())
    }

    /// Acquires permits for a request of `length` bytes, or starts to wait for them.
    fn acquire(&mut self, length: usize) {
        let Some(call) = self.call.as_ref().filter(|_| length > SMALL_REQUEST) else { return };
        let uploads = Arc::clone(call.uploads());
        let kib = (length >> 10).min(UPLOAD_KIB) as u32;
        self.permit = match Arc::clone(&uploads).try_acquire_many_owned(kib) {
            Ok(permit) => Permit::Granted(Some(permit)),
            Err(_) => {
                Permit::Waiting(async move { uploads.acquire_many_owned(kib).await.ok() }.boxed())
            }
        };
    }

    fn poll_timeout(&mut self, cx: &mut Context<'_>) -> Poll<ServiceError> {
        let Some(timeout) = self.timeout else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(timer.as_mut().poll(cx));
        self.bounds.count_rejected("timeout");
        let (read, waited) = (self.read, timeout.as_secs_f64());
        let length = self.length.filter(|_| self.framing == Framing::Grpc);
        let total = length.map(|length| format!(" of {length}")).unwrap_or_default();
        let stage = format!(
            "while the request was read: {read}{total} bytes were received in {waited} s (--request-read-timeout)"
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
                let error = ready!(this.poll_timeout(cx));
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(Some(Ok(frame))) => {
                let accounted = frame.data_ref().map_or(Ok(()), |data| this.account(data));
                Poll::Ready(Some(accounted.map(|()| frame).map_err(Status::from)))
            }
            Poll::Ready(end) => {
                if let (Some(Err(_)), Some(call)) = (&end, &this.call) {
                    call.reset();
                }
                (this.permit, this.timer) = (Permit::Granted(None), None);
                Poll::Ready(end)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests;

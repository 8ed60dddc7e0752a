//! Middleware for every request of a listener: records the arrival time, counts the call as open on
//! its connection, charges its bytes to the memory budget while they are received, and limits the
//! time for that.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body as _, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{
    bounds::Bounds,
    charge::Charge,
    peer::{OpenCall, Peer},
    request_body::{Framing, RequestBody},
};
use crate::deadline;

/// Prefix of the services with client-streaming calls, which have no time limit.
const STREAMING: &str = "/grpc.reflection.";
/// The layer of [`RequestAccounting`].
#[derive(Debug, Clone)]
pub struct RequestAccountingLayer {
    pub(super) bounds: Bounds,
    pub(super) framing: Framing,
}

impl<S> Layer<S> for RequestAccountingLayer {
    type Service = RequestAccounting<S>;

    fn layer(&self, next: S) -> RequestAccounting<S> {
        RequestAccounting { next, bounds: self.bounds.clone(), framing: self.framing }
    }
}

/// Maximum sizes of the parts of an HTTP request, in bytes, in its extensions.
#[derive(Debug, Clone, Copy)]
pub struct SizeLimit {
    /// Size of the body.
    pub body: usize,
    /// Size of the headers. HTTP/2 enforces it itself.
    pub headers: usize,
}

/// The middleware that this module describes.
#[derive(Debug, Clone)]
pub struct RequestAccounting<S> {
    next: S,
    bounds: Bounds,
    framing: Framing,
}

impl<S> Service<http::Request<Body>> for RequestAccounting<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.next.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let call = request.extensions().get::<Peer>().map(Peer::call);
        let charge = Charge::new(self.bounds.memory());
        if let Framing::Http(body) = self.framing {
            let headers = self.bounds.config().max_header_size.as_u64() as usize;
            request.extensions_mut().insert(SizeLimit { body, headers });
        }
        deadline::record_arrival(request.extensions_mut());
        request.extensions_mut().insert(charge.clone());
        let streaming = request.uri().path().starts_with(STREAMING);
        let timeout = (!streaming).then_some(self.bounds.config().request_read_timeout);
        let request = request.map(|body| match body.is_end_stream() {
            true => body,
            false => {
                let (bounds, framing) = (self.bounds.clone(), self.framing);
                Body::new(RequestBody::new(body, framing, bounds, charge, call.clone(), timeout))
            }
        });
        ResponseFuture { response: self.next.call(request), call }
    }
}

pin_project! {
    /// The future of a response.
    pub struct ResponseFuture<F> {
        #[pin]
        response: F,
        call: Option<OpenCall>,
    }

    impl<F> PinnedDrop for ResponseFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            if let Some(call) = this.project().call {
                call.reset();
            }
        }
    }
}

impl<F, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<http::Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let response = ready!(this.response.poll(cx))?;
        let call = this.call.take();
        if let Some(call) = &call {
            call.set_unread(true);
        }
        let wrap = |body: Body| {
            if let Some(call) = call.as_ref().filter(|_| body.is_end_stream()) {
                call.settle();
            }
            Body::new(ResponseBody { body, call })
        };
        Poll::Ready(Ok(response.map(wrap)))
    }
}

/// The body of a response. Its call counts as open until it is dropped.
struct ResponseBody {
    body: Body,
    call: Option<OpenCall>,
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let Some(call) = &self.call {
            call.reset();
        }
    }
}

impl http_body::Body for ResponseBody {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Some(call) = &self.call {
            if polled.is_ready() {
                call.settle();
            }
            // After a frame, the next poll comes once the client has read enough.
            call.set_unread(polled.is_ready());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

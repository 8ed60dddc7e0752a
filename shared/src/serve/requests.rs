//! What happens to every request of a listener before its service has it: its arrival is noted, it counts as open on
//! its connection, and its bytes are accounted for while they come in, which they have a limited time for.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use http_body::{Body as _, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{
    bounds::Bounds,
    peer::{OpenCall, Peer},
    request_body::RequestBody,
};
use crate::{
    ServiceError, deadline,
    memory::{MemoryBudget, MemoryReservation},
};

/// Services whose calls send message after message, for as long as they like.
const STREAMING: &str = "/grpc.reflection.";
/// When to come back where the memory for requests is full.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// The bytes that a request is accounted for with. It has them from its first one, among its extensions; who goes on with
/// the request takes them along.
#[derive(Debug, Clone)]
pub struct Charge(Arc<Mutex<MemoryReservation>>);

impl Charge {
    /// Accounts for `bytes` in all from here on.
    pub fn set(&self, bytes: u64) -> Result<(), ServiceError> {
        let mut hold = self.hold();
        if hold.set(bytes) { Ok(()) } else { Err(no_room(&hold, bytes)) }
    }

    /// What a request is accounted for with; nothing, if it came by another way.
    pub fn of<T>(request: &tonic::Request<T>) -> Option<Self> {
        request.extensions().get().cloned()
    }

    /// What it is a part of.
    pub fn budget(&self) -> MemoryBudget {
        self.hold().budget().clone()
    }

    /// Accounts for `bytes` more.
    pub(super) fn grow(&self, bytes: u64) -> Result<(), ServiceError> {
        let mut hold = self.hold();
        if hold.grow(bytes) { Ok(()) } else { Err(no_room(&hold, hold.bytes() + bytes)) }
    }

    fn hold(&self) -> MutexGuard<'_, MemoryReservation> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_room(hold: &MemoryReservation, wanted: u64) -> ServiceError {
    let (held, limit) = (hold.budget().reserved(), hold.budget().limit());
    if wanted > limit {
        let why = format!("takes {wanted} bytes, and all may take {limit} (--max-request-memory)");
        return ServiceError::invalid("request", why);
    }
    ServiceError::Overloaded {
        what: format!(
            "requests hold {held} of {limit} bytes (--max-request-memory), and this one takes {wanted}"
        ),
        retry_after: RETRY_AFTER,
    }
}

/// Makes [`Requests`].
#[derive(Debug, Clone)]
pub struct RequestsLayer(pub(super) Bounds);

impl<S> Layer<S> for RequestsLayer {
    type Service = Requests<S>;

    fn layer(&self, next: S) -> Requests<S> {
        Requests { next, bounds: self.0.clone() }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Requests<S> {
    next: S,
    bounds: Bounds,
}

impl<S> Service<http::Request<Body>> for Requests<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Responding<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.next.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let peer = request.extensions().get::<Peer>().cloned();
        let charge = Charge(Arc::new(Mutex::new(self.bounds.memory().reservation())));
        deadline::record_arrival(request.extensions_mut());
        request.extensions_mut().insert(charge.clone());
        let call = peer.as_ref().map(Peer::call);
        let streams = request.uri().path().starts_with(STREAMING);
        let timeout = (!streams).then_some(self.bounds.config().request_read_timeout);
        let request = request.map(|body| match body.is_end_stream() {
            true => body,
            false => Body::new(RequestBody::new(body, self.bounds.clone(), charge, peer, timeout)),
        });
        Responding { response: self.next.call(request), call }
    }
}

pin_project! {
    /// A call that is being answered.
    pub struct Responding<F> {
        #[pin]
        response: F,
        call: Option<OpenCall>,
    }
}

impl<F, E> Future for Responding<F>
where
    F: Future<Output = Result<http::Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let response = ready!(this.response.poll(cx))?;
        let call = this.call.take();
        Poll::Ready(Ok(response.map(|body| Body::new(ResponseBody { body, _call: call }))))
    }
}

/// A response, whose call is open as long as it is there.
struct ResponseBody {
    body: Body,
    _call: Option<OpenCall>,
}

impl http_body::Body for ResponseBody {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

//! A client of a cluster: its connections, and `Generate` calls as streams of typed events.

mod address;
mod connect;
mod credentials;

use std::{
    error::Error,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::{FutureExt, future::BoxFuture};
use stoker_proto::v1::{
    GenerateRequest, GenerateResponse, admin_client::AdminClient, control_client::ControlClient,
    generate_response as wire, inference_client::InferenceClient,
};
use tonic::{Code, Request, Status, Streaming, TimeoutExpired};
use tonic_health::pb::health_client::HealthClient;

pub use address::Address;
pub use connect::{ConnectError, Transport, connector, dial, over_tls};
pub use credentials::{Authorization, Credentials, CredentialsError};

use crate::{
    ServiceError,
    deadline::Deadline,
    error::{code_name, root_cause},
};

/// Maximum size of a received event, in bytes: far above the largest that is sent, an event with
/// log probabilities of a prompt.
pub const MAX_EVENT_BYTES: usize = 16 << 20;
/// Receive window of a connection, in bytes: the maximum of HTTP/2. Unread data of slow readers
/// counts against every stream of the connection, and h2 closes a connection whose small unread
/// frames outweigh half of the window.
pub const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// Maximum number of times that a call is sent which did not leave this process.
const MAX_ATTEMPTS: u32 = 3;

/// Whether the connection was closed for new calls before this one was sent, or before the server read
/// it.
fn was_not_sent(status: &Status) -> bool {
    let mut causes = std::iter::successors(status.source(), |&error| error.source());
    causes.any(|error| {
        error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
            || error.downcast_ref::<h2::Error>().is_some_and(was_not_read)
    })
}

/// Whether a server that shuts down has not read the call: its GOAWAY names the last call that it did.
fn was_not_read(error: &h2::Error) -> bool {
    error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
}

/// Why a call failed: the status of the cluster, or a connection error. Its text starts with the
/// name of the gRPC code, for instance `UNAVAILABLE`.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {}", code_name(.0.code()), .0.message())]
pub struct CallError(Status);

impl CallError {
    /// Returns the code of the status.
    pub fn code(&self) -> Code {
        self.0.code()
    }

    /// Returns the message without the code.
    pub fn message(&self) -> &str {
        self.0.message()
    }

    /// Returns the status with its details.
    pub fn status(&self) -> &Status {
        &self.0
    }

    /// Converts a status. A status with a source was created by the local transport, not by the
    /// cluster.
    fn new(status: Status, deadline: Deadline) -> Self {
        let source = status.source();
        let mut causes = std::iter::successors(source, |&error| error.source());
        // tonic also enforces the deadline on both sides until the headers arrive, and reports
        // CANCELLED.
        let from_tonic = source.is_some() || status.code() == Code::Cancelled;
        if causes.any(|error| error.is::<TimeoutExpired>()) || (from_tonic && deadline.is_over()) {
            return Self::deadline_exceeded();
        }
        match source {
            None => Self(status),
            Some(source) => {
                let message = format!("the connection failed: {}", root_cause(source));
                Self(Status::unavailable(message))
            }
        }
    }

    fn deadline_exceeded() -> Self {
        let stage = "waiting for the cluster".into();
        Self(ServiceError::DeadlineExceeded { stage }.into())
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::new(status, Deadline::NEVER)
    }
}

/// Connections to one cluster, over which calls are distributed round-robin. Clones share them. A
/// lost connection is re-established by the next call that uses it.
#[derive(Debug, Clone)]
pub struct Client {
    channels: Arc<[Transport]>,
    next: Arc<AtomicUsize>,
}

impl Client {
    /// Opens one connection, which carries any number of concurrent calls. Without a key; over TLS
    /// with the authorities of the system if the address is an `https` URL.
    pub async fn connect(address: &Address) -> Result<Self, ConnectError> {
        Self::connect_with(address, &Credentials::default()).await
    }

    /// Opens one connection, with `credentials`.
    pub async fn connect_with(
        address: &Address,
        credentials: &Credentials,
    ) -> Result<Self, ConnectError> {
        Self::connect_many(address, NonZeroUsize::MIN, credentials).await
    }

    /// Opens several connections. Servers and proxies limit the number of streams per connection,
    /// and a connection is served by one thread at a time.
    pub async fn connect_many(
        address: &Address,
        connections: NonZeroUsize,
        credentials: &Credentials,
    ) -> Result<Self, ConnectError> {
        let channels = connect::connect(address, connections, credentials).await?;
        Ok(Self { channels: channels.into(), next: Arc::default() })
    }

    /// Starts a `Generate` call. Dropping the response stream, or this future, cancels the call.
    ///
    /// A server that shuts down closes its connections for new calls. A call that could not be sent
    /// for that reason is sent on a new connection.
    pub async fn generate(
        &self,
        request: GenerateRequest,
        deadline: Deadline,
    ) -> Result<ResponseStream, CallError> {
        let mut inference =
            InferenceClient::new(self.channel()).max_decoding_message_size(MAX_EVENT_BYTES);
        let mut attempts = 1..=MAX_ATTEMPTS;
        let response = loop {
            let is_last = attempts.next() == Some(MAX_ATTEMPTS);
            let mut request = Request::new(request.clone());
            deadline.forward(&mut request);
            let response = tokio::select! {
                biased;
                response = inference.generate(request) => response,
                () = deadline.passed() => return Err(CallError::deadline_exceeded()),
            };
            match response {
                Err(status) if !is_last && was_not_sent(&status) => {}
                response => break response,
            }
        };
        let response = response.map_err(|status| CallError::new(status, deadline))?;
        Ok(ResponseStream {
            messages: response.into_inner(),
            deadline,
            deadline_passed: async move { deadline.passed().await }.fuse().boxed(),
            complete: false,
        })
    }

    /// Returns a client of the `Control` service.
    pub fn control(&self) -> ControlClient<Transport> {
        ControlClient::new(self.channel())
    }

    /// Returns a client of the `Admin` service, which processes serve on `--admin-listen`.
    pub fn admin(&self) -> AdminClient<Transport> {
        AdminClient::new(self.channel()).max_decoding_message_size(MAX_EVENT_BYTES)
    }

    /// Returns a client of `grpc.health.v1`.
    pub fn health(&self) -> HealthClient<Transport> {
        HealthClient::new(self.channel())
    }

    fn channel(&self) -> Transport {
        // Never empty: `connect_many` opens at least one.
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.channels.len();
        self.channels[next].clone()
    }
}

/// One event of a response.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The choice that the event belongs to, from 0.
    pub choice: u32,
    /// The attempt that produced it, from 1: another worker has resumed the response when it grows. 0
    /// from a worker without a router.
    pub attempt: u32,
    /// The content of the event.
    pub kind: wire::Event,
}

/// The events of a response. Dropping the stream before its end cancels the call.
pub struct ResponseStream {
    messages: Streaming<GenerateResponse>,
    deadline: Deadline,
    /// One timer for the whole response, instead of one per token.
    deadline_passed: BoxFuture<'static, ()>,
    /// Whether the last event was received.
    complete: bool,
}

impl ResponseStream {
    /// Waits for the next event. Returns `None` after the last one, which carries the usage. A
    /// stream that ends without it is an error, so a response is never truncated silently.
    pub async fn next(&mut self) -> Result<Option<Event>, CallError> {
        loop {
            let message = tokio::select! {
                // An event that has arrived is read even if the deadline has passed in the
                // meantime.
                biased;
                message = self.messages.message() => message,
                () = &mut self.deadline_passed => return Err(CallError::deadline_exceeded()),
            };
            match message.map_err(|status| CallError::new(status, self.deadline))? {
                Some(GenerateResponse { choice, event: Some(kind), attempt }) => {
                    self.complete |=
                        matches!(&kind, wire::Event::Finished(end) if end.usage.is_some());
                    return Ok(Some(Event { choice, attempt, kind }));
                }
                // An event of a later release.
                Some(_) => {}
                None if self.complete => return Ok(None),
                None => {
                    let cause = "the stream ended before the response was complete";
                    return Err(CallError(Status::unavailable(cause)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[tokio::test]
    async fn a_refused_connection_names_the_address_and_the_cause() {
        // A port that was free a moment ago.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let error = Client::connect(&address.parse().unwrap()).await.unwrap_err().to_string();
        assert!(error.contains(&address) && error.contains("refused"), "{error}");
    }
}

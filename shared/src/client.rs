//! A client of a cluster: its connections, and one `Generate` call as a stream of typed events.

use std::{
    error::Error,
    fmt,
    net::SocketAddr,
    num::NonZeroUsize,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, try_join_all},
};
use stoker_proto::v1::{
    GenerateRequest, GenerateResponse, control_client::ControlClient, generate_response as wire,
    inference_client::InferenceClient,
};
use tonic::{
    Code, Request, Status, Streaming, TimeoutExpired,
    transport::{Channel, Endpoint, Uri},
};

use crate::{
    ServiceError,
    deadline::Deadline,
    error::{code_name, root_cause},
};

/// The largest event that is read, in bytes: far above the largest that is sent, a part of the log
/// probabilities of a prompt.
pub const MAX_EVENT_BYTES: usize = 16 << 20;
/// What all streams of a connection may leave unread, in bytes: as much as HTTP/2 allows. Unread data of
/// slow readers counts against every stream of the connection, and h2 closes a connection whose small
/// unread frames outweigh half of it.
pub const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// An unreachable cluster is reported after this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that is gone without a word is noticed by the operating system, without pings of HTTP/2, which
/// some proxies take for an attack.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// Where a cluster listens: `host:port`, or the same as a URL, `http://host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(Uri);

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let usage = "write it as host:port, for instance 127.0.0.1:50051";
        let authority = match text.split_once("://") {
            None => text,
            Some(("http", rest)) => rest.strip_suffix('/').unwrap_or(rest),
            Some(("https", _)) => return Err("TLS is not supported yet; write host:port"),
            Some(_) => return Err(usage),
        };
        let uri: Uri = format!("http://{authority}").parse().map_err(|_| usage)?;
        let plain =
            uri.authority().is_some_and(|a| a.as_str() == authority && !a.as_str().contains('@'))
                && uri.host().is_some_and(|host| !host.is_empty());
        match uri.port_u16() {
            Some(1..) if plain => Ok(Self(uri)),
            _ => Err(usage),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let uri = Uri::builder().scheme("http").authority(address.to_string()).path_and_query("/");
        // A socket address is an authority.
        Self(uri.build().unwrap_or_default())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.authority().map_or("", |authority| authority.as_str()))
    }
}

/// Nobody answers at an address.
#[derive(Debug, thiserror::Error)]
#[error("no cluster at {address}: {cause}; start one with `stoker serve`")]
pub struct ConnectError {
    address: Address,
    cause: String,
}

/// Why a call failed: what the cluster said, or what became of the connection. Its text begins with the
/// code as gRPC spells it, `UNAVAILABLE`.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {}", code_name(.0.code()), .0.message())]
pub struct CallError(Status);

impl CallError {
    /// The code of the status.
    pub fn code(&self) -> Code {
        self.0.code()
    }

    /// What happened, without the code.
    pub fn message(&self) -> &str {
        self.0.message()
    }

    /// The status with its details.
    pub fn status(&self) -> &Status {
        &self.0
    }

    /// Reads a status. One with a source was made here, by the transport: the cluster said nothing.
    fn new(status: Status, deadline: Deadline) -> Self {
        let source = status.source();
        let mut causes = std::iter::successors(source, |&error| error.source());
        // tonic keeps the deadline at both ends too, until the headers come, and calls it CANCELLED.
        let by_tonic = source.is_some() || status.code() == Code::Cancelled;
        if causes.any(|error| error.is::<TimeoutExpired>()) || (by_tonic && deadline.is_over()) {
            return Self::late();
        }
        match source {
            None => Self(status),
            Some(source) => {
                let message = format!("the connection failed: {}", root_cause(source));
                Self(Status::unavailable(message))
            }
        }
    }

    fn late() -> Self {
        let stage = "waiting for the cluster".into();
        Self(ServiceError::DeadlineExceeded { stage }.into())
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::new(status, Deadline::NEVER)
    }
}

/// Connections to one cluster; calls take turns on them. Clones share them, and a connection that was
/// lost is made again by the next call on it.
#[derive(Debug, Clone)]
pub struct Client {
    channels: Arc<[Channel]>,
    turn: Arc<AtomicUsize>,
}

impl Client {
    /// One connection, which carries any number of calls at once.
    pub async fn connect(address: &Address) -> Result<Self, ConnectError> {
        Self::connect_many(address, NonZeroUsize::MIN).await
    }

    /// Several connections: servers and proxies limit the streams of one, and one is served by one thread
    /// at a time.
    pub async fn connect_many(
        address: &Address,
        connections: NonZeroUsize,
    ) -> Result<Self, ConnectError> {
        let endpoint = Endpoint::from(address.0.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(TCP_KEEPALIVE))
            .initial_connection_window_size(CONNECTION_WINDOW);
        let channels = try_join_all((0..connections.get()).map(|_| endpoint.connect())).await;
        let channels = channels.map_err(|error| ConnectError {
            address: address.clone(),
            cause: root_cause(&error),
        })?;
        Ok(Self { channels: channels.into(), turn: Arc::default() })
    }

    /// Starts an answer. Dropping it, or this future, cancels the call.
    pub async fn generate(
        &self,
        request: GenerateRequest,
        deadline: Deadline,
    ) -> Result<Answer, CallError> {
        let mut request = Request::new(request);
        deadline.forward(&mut request);
        let mut inference =
            InferenceClient::new(self.channel()).max_decoding_message_size(MAX_EVENT_BYTES);
        let response = tokio::select! {
            biased;
            response = inference.generate(request) => response,
            () = deadline.passed() => return Err(CallError::late()),
        };
        let response = response.map_err(|status| CallError::new(status, deadline))?;
        Ok(Answer {
            messages: response.into_inner(),
            deadline,
            passed: async move { deadline.passed().await }.fuse().boxed(),
            complete: false,
        })
    }

    /// The calls beside `Generate`.
    pub fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel())
    }

    fn channel(&self) -> Channel {
        // Never empty: `connect_many` asks for at least one.
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.channels.len();
        self.channels[turn].clone()
    }
}

/// One event of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The continuation that it belongs to, from 0.
    pub choice: u32,
    /// What happened.
    pub kind: wire::Event,
}

/// An answer as it comes. Dropping it before its end cancels the call.
pub struct Answer {
    messages: Streaming<GenerateResponse>,
    deadline: Deadline,
    /// One timer for the whole answer, rather than one a token.
    passed: BoxFuture<'static, ()>,
    /// The last event has come.
    complete: bool,
}

impl Answer {
    /// Waits for the next event; `None` after the last one, which carries the usage. An answer that ends
    /// without it is an error: none is ever short in silence.
    pub async fn next(&mut self) -> Result<Option<Event>, CallError> {
        loop {
            let message = tokio::select! {
                // What is there is read, even if the deadline passed in the meantime.
                biased;
                message = self.messages.message() => message,
                () = &mut self.passed => return Err(CallError::late()),
            };
            match message.map_err(|status| CallError::new(status, self.deadline))? {
                Some(GenerateResponse { choice, event: Some(kind), .. }) => {
                    self.complete |=
                        matches!(&kind, wire::Event::Finished(end) if end.usage.is_some());
                    return Ok(Some(Event { choice, kind }));
                }
                // An event that this version does not know.
                Some(_) => {}
                None if self.complete => return Ok(None),
                None => {
                    let cause = "the stream ended before the answer was complete";
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

    #[test]
    fn addresses_are_read_in_every_form_and_nothing_else() {
        for (text, shown) in [
            ("127.0.0.1:50051", "127.0.0.1:50051"),
            ("router:80", "router:80"),
            ("http://router:80", "router:80"),
            ("http://router:80/", "router:80"),
            ("[::1]:50051", "[::1]:50051"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), shown);
        }
        for bad in [
            "",
            "router",
            ":80",
            "router:0",
            "router:99999",
            "router:80/path",
            "a b:80",
            "me@router:80",
            "ftp://router:80",
            "https://router:80",
            "router:80?x",
            "http://",
        ] {
            let error = bad.parse::<Address>().unwrap_err();
            assert!(error.contains("host:port"), "{bad:?}: {error}");
        }
    }

    #[tokio::test]
    async fn a_refused_connection_says_so() {
        // A port that was free a moment ago.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let error = Client::connect(&address.parse().unwrap()).await.unwrap_err().to_string();
        assert!(error.contains(&address) && error.contains("refused"), "{error}");
    }
}

//! What an attack is, and how a server may end an attempt of it.

use std::{fmt, net::SocketAddr, pin::Pin, sync::Arc};

use rand::rngs::StdRng;

use crate::tally::Tally;

/// The listeners that are attacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// gRPC of the router.
    Router,
    /// OpenAI's HTTP API of the router.
    Http,
    /// gRPC of a worker.
    Worker,
}

/// The listeners that an attack is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Whatever speaks HTTP/2: all of them.
    All,
    /// Those of gRPC.
    Grpc,
    /// The one of OpenAI's API.
    Http,
}

impl Scope {
    /// Returns whether the attack is for this listener.
    pub fn contains(self, role: Role) -> bool {
        match self {
            Self::All => true,
            Self::Grpc => role != Role::Http,
            Self::Http => role == Role::Http,
        }
    }
}

/// A kind of attack, with its limits on one listener.
#[derive(Debug, Clone, Copy)]
pub struct Attack {
    /// What it is one of, for instance `flood`.
    pub family: &'static str,
    /// Its name.
    pub name: &'static str,
    /// The listeners that it is for.
    pub scope: Scope,
    /// Attempts per second.
    pub per_second: f64,
    /// Maximum number of attempts at the same time. Each has at most one connection at a time.
    pub concurrency: usize,
    /// Makes one attempt.
    pub attempt: fn(Context) -> Attempt,
}

/// One attempt.
pub type Attempt = Pin<Box<dyn Future<Output = Ending> + Send>>;

/// What an attempt needs.
#[derive(Debug)]
pub struct Context {
    /// The listener.
    pub role: Role,
    /// Its address.
    pub address: SocketAddr,
    /// Random numbers that depend on the seed, the attack and the number of the attempt alone.
    pub rng: StdRng,
    /// The counters.
    pub tally: Arc<Tally>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// No connection could be established.
    NotConnected,
    /// The server sent GOAWAY with this code.
    GoAway(u32),
    /// The server reset the stream with this code.
    StreamReset(u32),
    /// The server sent this gRPC status.
    Grpc(u32),
    /// The server sent a response over HTTP/1.1, or several to what was meant as one request.
    Http {
        /// Status of the first one.
        status: u16,
        /// Number of responses.
        responses: usize,
    },
    /// The server sent a complete response, whose status was not read.
    Response,
    /// The server closed the connection.
    Closed,
    /// The server reset the connection.
    Reset,
    /// The connection was still open when the attempt gave up.
    LeftOpen,
    /// The attack itself ended the connection, as planned.
    Finished,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotConnected => f.write_str("not connected"),
            Self::GoAway(code) => write!(f, "GOAWAY {:?}", h2::Reason::from(code)),
            Self::StreamReset(code) => write!(f, "RST_STREAM {:?}", h2::Reason::from(code)),
            Self::Grpc(code) => {
                let code = tonic::Code::from_i32(i32::try_from(code).unwrap_or(i32::MAX));
                write!(f, "status {code:?}")
            }
            Self::Http { status, responses: 1 } => write!(f, "HTTP {status}"),
            Self::Http { status, responses } => write!(f, "HTTP {status}, {responses} responses"),
            Self::Response => f.write_str("response"),
            Self::Closed => f.write_str("closed"),
            Self::Reset => f.write_str("reset"),
            Self::LeftOpen => f.write_str("left open"),
            Self::Finished => f.write_str("finished"),
        }
    }
}

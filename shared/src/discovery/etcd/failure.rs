//! What may go wrong between us and etcd.

use std::{error::Error as _, time::Duration};

use etcd_client::Error;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::AuthError;
use crate::error::root_cause;

/// The longest that one answer of etcd may take.
pub(super) const ANSWER: Duration = Duration::from_secs(5);

/// The stream of a lease's signs of life, for [`Failure::Ended`].
pub(super) const KEEP_ALIVE: &str = "keep-alive of the lease";

/// Why a session with a server of etcd ended. Reads on from the server's name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    #[error("gave no answer for {0:?}")]
    Silent(Duration),
    #[error("refuses: {0}")]
    Refused(String),
    /// etcd does not know the user, its password or its token.
    #[error("refuses the user: {0}")]
    Unauthenticated(String),
    /// The user's roles lack a permission.
    #[error("refuses the user: {0}")]
    Denied(String),
    #[error("has no authentication enabled")]
    AuthDisabled,
    #[error("was not contacted: {0}")]
    Credentials(String),
    #[error("was not contacted: reading the password took more than {0:?}")]
    PasswordTimeout(Duration),
    #[error("ended the {0}")]
    Ended(&'static str),
    #[error("dropped the lease, as it does after a pause or when it is wiped")]
    LeaseLost,
    #[error("has compacted what was to be watched")]
    Compacted,
    #[error("went back from revision {from} to {to}, as if it was wiped")]
    WentBack { from: i64, to: i64 },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::GRpcStatus(status) => match status.source() {
                // Made here, by the transport.
                Some(cause) => Self::Unreachable(root_cause(cause)),
                // Of all that we ask for, only a lease can be missing: an absent key is an empty answer.
                None if status.code() == Code::NotFound => Self::LeaseLost,
                None => refusal(&status),
            },
            Error::LeaseKeepAliveError(_) => Self::Ended(KEEP_ALIVE),
            other => Self::Unreachable(other.to_string()),
        }
    }
}

impl From<AuthError> for Failure {
    fn from(error: AuthError) -> Self {
        Self::Credentials(error.to_string())
    }
}

/// Messages of authentication errors whose status code other errors have too.
const NOT_AUTHENTICATED: [&str; 3] = [
    "etcdserver: authentication failed, invalid user ID or password",
    "etcdserver: user name is empty",
    "etcdserver: revision of auth store is old",
];
const AUTH_DISABLED: &str = "etcdserver: authentication is not enabled";

fn refusal(status: &Status) -> Failure {
    let message = status.message().to_owned();
    match status.code() {
        Code::Unauthenticated => Failure::Unauthenticated(message),
        Code::PermissionDenied => Failure::Denied(message),
        Code::FailedPrecondition if message == AUTH_DISABLED => Failure::AuthDisabled,
        _ if NOT_AUTHENTICATED.contains(&&*message) => Failure::Unauthenticated(message),
        _ => Failure::Refused(message),
    }
}

/// Waits for an answer, for at most `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, Failure> {
    Ok(timeout(limit, answer).await.map_err(|_| Failure::Silent(limit))??)
}

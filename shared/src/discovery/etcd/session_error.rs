//! Errors of a session with etcd.

use std::{error::Error as _, time::Duration};

use etcd_client::Error;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::AuthError;
use crate::error::root_cause;

/// Time limit for a response of etcd.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Name of the keep-alive stream of a lease, for [`SessionError::Ended`].
pub(super) const KEEP_ALIVE: &str = "keep-alive of the lease";

/// Why a session with a server of etcd ended. The text follows the name of the server.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SessionError {
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    #[error("did not respond within {0:?}")]
    ResponseTimeout(Duration),
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
    #[error("no longer has the lease, which expired or was wiped")]
    LeaseLost,
    #[error("has compacted the revision to watch")]
    Compacted,
    #[error("went back from revision {from} to {to}; its data may have been wiped")]
    RevisionDecreased { from: i64, to: i64 },
}

impl From<Error> for SessionError {
    fn from(error: Error) -> Self {
        match error {
            Error::GRpcStatus(status) => match status.source() {
                // Created by the local transport.
                Some(cause) => Self::Unreachable(root_cause(cause)),
                // Only a lease can be missing: a read of an absent key returns an empty response.
                None if status.code() == Code::NotFound => Self::LeaseLost,
                None => classify(&status),
            },
            Error::LeaseKeepAliveError(_) => Self::Ended(KEEP_ALIVE),
            other => Self::Unreachable(other.to_string()),
        }
    }
}

impl From<AuthError> for SessionError {
    fn from(error: AuthError) -> Self {
        Self::Credentials(error.to_string())
    }
}

/// Messages of authentication errors whose status codes are not specific to them.
const NOT_AUTHENTICATED: [&str; 3] = [
    "etcdserver: authentication failed, invalid user ID or password",
    "etcdserver: user name is empty",
    "etcdserver: revision of auth store is old",
];
const AUTH_DISABLED: &str = "etcdserver: authentication is not enabled";

fn classify(status: &Status) -> SessionError {
    let message = status.message().to_owned();
    match status.code() {
        Code::Unauthenticated => SessionError::Unauthenticated(message),
        Code::PermissionDenied => SessionError::Denied(message),
        Code::FailedPrecondition if message == AUTH_DISABLED => SessionError::AuthDisabled,
        _ if NOT_AUTHENTICATED.contains(&&*message) => SessionError::Unauthenticated(message),
        _ => SessionError::Refused(message),
    }
}

/// Waits for a response for at most `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    response: impl Future<Output = Result<T, Error>>,
) -> Result<T, SessionError> {
    Ok(timeout(limit, response).await.map_err(|_| SessionError::ResponseTimeout(limit))??)
}

//! Calls of `stoker.v1.Admin` for the commands of operators.

use stoker_proto::v1::admin_client::AdminClient;
use stoker_shared::client::{Address, CallError, Client, Credentials, Transport};
use tonic::{Code, Status};

use crate::error::Error;

/// Where operators find the address of `--endpoint`.
pub const HINT: &str =
    "give the address of --admin-listen, which the process logs at start as `admin`";

/// A connection to the admin listener of a process.
#[derive(Debug)]
pub struct Operator {
    endpoint: Address,
    /// The client of the service.
    pub admin: AdminClient<Transport>,
}

impl Operator {
    /// Connects to the address of `--endpoint`, which is required.
    pub async fn connect(
        endpoint: Option<Address>,
        credentials: &Credentials,
    ) -> Result<Self, Error> {
        let missing = || Error::Usage(format!("--endpoint is missing: {HINT}"));
        let endpoint = endpoint.ok_or_else(missing)?;
        match Client::connect_with(&endpoint, credentials).await {
            Ok(client) => Ok(Self { endpoint, admin: client.admin() }),
            Err(error) => {
                let cause = error.cause();
                Err(Error::Failed(format!("--endpoint {endpoint}: {cause}; {HINT}")))
            }
        }
    }

    /// Returns the address of `--endpoint`.
    pub fn endpoint(&self) -> &Address {
        &self.endpoint
    }

    /// Converts the status of a call that the admin listener of `whom` serves.
    pub fn error(&self, whom: &str, status: Status) -> Error {
        let endpoint = &self.endpoint;
        if status.code() == Code::Unimplemented {
            let what = format!("--endpoint {endpoint} is not the admin listener of {whom}; {HINT}");
            return Error::Failed(what);
        }
        Error::Request(CallError::from(status))
    }
}

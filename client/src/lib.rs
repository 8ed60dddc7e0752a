//! A client of a Stoker cluster.
//!
//! A call has a deadline, which the cluster knows: it refuses early what cannot meet it. A refusal
//! that says when to try again is followed, as long as the deadline allows. A response is a stream
//! of events, and one that ends early is an error: text is never cut off silently.
//!
//! ```no_run
//! use std::time::Duration;
//! use stoker_client::{Client, Deadline, EventKind, chat};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(&"127.0.0.1:50051".parse()?).await?;
//! let request = chat([("user", "Once upon a time")]);
//! let deadline = Deadline::after(Duration::from_secs(60));
//! let mut response = client.generate(request, deadline).await?;
//! while let Some(event) = response.next().await? {
//!     if let EventKind::Token(token) = event.kind {
//!         print!("{}", token.text);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod requests;
mod retry;

use stoker_proto::v1::{ListModelsRequest, ServedModel};

pub use requests::{chat, message, prompt};
pub use retry::RetryPolicy;
/// The messages of the contract: requests have more options than the functions here set.
pub use stoker_proto::v1 as proto;
pub use stoker_proto::v1::{GenerateRequest, generate_response::Event as EventKind};
pub use stoker_shared::{
    client::{Address, CallError, ConnectError, Credentials, Event, ResponseStream},
    config::Secret,
    deadline::Deadline,
};

/// Connections to a cluster. Clones share them.
#[derive(Debug, Clone)]
pub struct Client {
    calls: stoker_shared::client::Client,
    retries: RetryPolicy,
}

impl Client {
    /// Connects to the router, or the worker, at `address`: over TLS if that is an `https` URL, which
    /// takes the feature `tls`.
    pub async fn connect(address: &Address) -> Result<Self, ConnectError> {
        Self::connect_with(address, &Credentials::default()).await
    }

    /// Connects with a certificate or an API key. Without a key in `credentials`, that of the variable
    /// `STOKER_API_KEY` is sent, if it is set.
    pub async fn connect_with(
        address: &Address,
        credentials: &Credentials,
    ) -> Result<Self, ConnectError> {
        let calls = stoker_shared::client::Client::connect_with(address, credentials).await?;
        Ok(Self { calls, retries: RetryPolicy::default() })
    }

    /// Replaces the rule for retries.
    #[must_use]
    pub fn with_retries(self, retries: RetryPolicy) -> Self {
        Self { retries, ..self }
    }

    /// Sends a request, and returns its response once a worker has accepted it. Dropping the
    /// response, or this future, cancels the request.
    ///
    /// Fails with the status of the cluster, whose details name invalid fields.
    pub async fn generate(
        &self,
        request: GenerateRequest,
        deadline: Deadline,
    ) -> Result<ResponseStream, CallError> {
        let mut attempt = 1;
        loop {
            let error = match self.calls.generate(request.clone(), deadline).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            match self.retries.delay(&error, attempt, deadline) {
                Some(delay) => tokio::time::sleep(delay).await,
                None => return Err(error),
            }
            attempt += 1;
        }
    }

    /// Lists the models that the cluster serves.
    pub async fn models(&self) -> Result<Vec<ServedModel>, CallError> {
        let response = self.calls.control().list_models(ListModelsRequest {}).await;
        Ok(response.map_err(CallError::from)?.into_inner().models)
    }
}

//! A connection to a cluster.

use std::time::Duration;

use stoker_proto::v1::{GenerateRequest, GenerateResponse, inference_client::InferenceClient};
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

use crate::error::Error;

/// As much as HTTP/2 allows: a server may close a connection whose unread tokens fill most of its window.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// An unreachable endpoint is reported after this.
const CONNECT: Duration = Duration::from_secs(5);

/// A connection to a cluster.
pub struct Client(InferenceClient<Channel>);

impl Client {
    /// Connects to `address`, `host:port` or a URL.
    pub async fn connect(address: &str) -> Result<Self, Error> {
        let url =
            if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let wrong = |_| {
            Error::Usage(format!(
                "--endpoint {address}: write it as host:port, for instance 127.0.0.1:50051"
            ))
        };
        let endpoint = Endpoint::from_shared(url).map_err(wrong)?;
        let endpoint = endpoint
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let channel = endpoint.connect().await.map_err(|error| {
            let cause = innermost(&error);
            Error::Failed(format!(
                "no cluster at {address}: {cause}; start one with `stoker serve`"
            ))
        })?;
        Ok(Self(InferenceClient::new(channel)))
    }

    /// Starts a stream.
    pub async fn generate(
        &mut self,
        request: GenerateRequest,
    ) -> Result<Streaming<GenerateResponse>, Error> {
        Ok(self.0.generate(request).await?.into_inner())
    }
}

/// tonic's own message is "transport error"; what happened stands below it.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(below) = cause.source() {
        cause = below;
    }
    cause.to_string()
}

//! A Stoker cluster in one process, and a command line to use it or any other cluster.
//!
//! The router and its workers use gRPC over loopback sockets, as they do between machines; only
//! discovery is in-process.
//!
//! ```
//! use std::time::Duration;
//! use stoker::cluster::Cluster;
//! use stoker_proto::v1::{GenerateRequest, Stopping, generate_request::Input, generate_response};
//! use stoker_router::RouterConfig;
//! use stoker_shared::{client::Client, deadline::Deadline};
//! use stoker_worker::{ModelSource, WorkerConfig};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (worker, router) = (WorkerConfig::default(), RouterConfig::default());
//! let listen = "127.0.0.1:0".parse()?;
//! let cluster = Cluster::start(listen, ModelSource::Bundled, 2, worker, router).await?;
//!
//! let client = Client::connect(&cluster.address().to_string().parse()?).await?;
//! let request = GenerateRequest {
//!     input: Some(Input::Prompt("Once upon a time".into())),
//!     stopping: Some(Stopping { max_tokens: Some(10), ..Default::default() }),
//!     ..Default::default()
//! };
//! let mut response = client.generate(request, Deadline::NEVER).await?;
//! while let Some(event) = response.next().await? {
//!     if let generate_response::Event::Token(token) = event.kind {
//!         print!("{}", token.text);
//!     }
//! }
//! assert_eq!(cluster.shutdown(Duration::from_secs(5)).await, 0);
//! # Ok(())
//! # }
//! ```

pub mod admin;
pub mod chat;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod connect;
pub mod drain;
pub mod error;
pub mod explain;
pub mod generate;
pub mod keys;
pub mod output;
pub mod routers;
pub mod serve;
pub mod status;
pub mod table;
pub mod top;
pub mod trace;
pub mod waterfall;

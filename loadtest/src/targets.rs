//! What is loaded: a Stoker cluster over gRPC, or a server with OpenAI's API over HTTP. Both turn their
//! responses into the same outcome.

mod openai;
pub mod outcome;
pub mod request;
mod sse;
pub mod stoker;

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use clap::ValueEnum;
use stoker_shared::{
    client::{Address, Client, Credentials},
    deadline::Deadline,
};
use tokio::time::Instant;

use crate::error::Error;
use openai::OpenAi;
use outcome::{CallEnd, CallOutcome, LiveCounters, ReceivedResponse};
use request::LoadRequest;

/// Which API a target speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Api {
    /// A Stoker cluster or worker: gRPC
    Stoker,
    /// Any server with OpenAI's HTTP API: /v1/completions
    #[value(name = "openai")]
    OpenAi,
    /// The same with a chat template: /v1/chat/completions
    #[value(name = "openai-chat")]
    OpenAiChat,
}

impl Api {
    /// Returns the name of the API, as the flag has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stoker => "stoker",
            Self::OpenAi => "openai",
            Self::OpenAiChat => "openai-chat",
        }
    }
}

/// A connected target. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Target {
    protocol: Protocol,
    model: Arc<str>,
}

#[derive(Debug, Clone)]
enum Protocol {
    Stoker(Client),
    OpenAi(Box<OpenAi>),
}

impl Target {
    /// Connects to `address`. An empty `model` stands for the only one that is served. `connections`
    /// are those of gRPC; HTTP/1.1 has one for each stream.
    pub async fn connect(
        api: Api,
        address: &Address,
        model: &str,
        connections: NonZeroUsize,
        credentials: &Credentials,
    ) -> Result<Self, Error> {
        let (protocol, model) = match api {
            Api::Stoker => {
                let client = Client::connect_many(address, connections, credentials).await?;
                stoker::check(&client, address).await?;
                (Protocol::Stoker(client), model.into())
            }
            Api::OpenAi | Api::OpenAiChat => {
                let server = OpenAi::new(address, api == Api::OpenAiChat, credentials)?;
                let model = server.model(model).await?.into();
                (Protocol::OpenAi(Box::new(server)), model)
            }
        };
        Ok(Self { protocol, model })
    }

    /// Returns the name of the model that requests have.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Returns the number of tokens of a prompt, including those that the model adds.
    pub async fn prompt_tokens(&self, text: &str) -> Result<u32, Error> {
        match &self.protocol {
            Protocol::Stoker(client) => stoker::prompt_tokens(client, &self.model, text).await,
            Protocol::OpenAi(server) => server.prompt_tokens(&self.model, text).await,
        }
    }

    /// Sends `request`, which was scheduled for `scheduled`, and reads its response until it ends or
    /// is cancelled.
    pub async fn call(
        &self,
        request: &LoadRequest,
        scheduled: Instant,
        deadline: Option<Duration>,
        live: &LiveCounters,
    ) -> CallOutcome {
        let send_lag = scheduled.elapsed();
        let deadline = deadline.map_or(Deadline::NEVER, Deadline::after);
        live.start();
        let mut response = ReceivedResponse::new(scheduled, request.cancel_after);
        let end = match &self.protocol {
            Protocol::Stoker(client) => {
                stoker::call(client, request, deadline, live, &mut response).await
            }
            Protocol::OpenAi(server) => server.call(request, deadline, live, &mut response).await,
        };
        let end = match end {
            Ok(completion) => {
                response.check(completion).map_or_else(CallEnd::Failed, CallEnd::Complete)
            }
            Err(end) => end,
        };
        response.end(&end);
        CallOutcome { index: request.index, scheduled, send_lag, response, end }
    }
}

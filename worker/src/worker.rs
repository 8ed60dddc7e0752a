//! What the calls of a worker share.

use std::sync::Arc;

use prost::Message;
use stoker_chat_template::Renderer;
use stoker_engine::Model;
use stoker_proto::v1::{GenerateRequest, generate_request::Input};
use stoker_shared::{ServiceError, serve::Bounds, tls::IdentityPattern};

use crate::{
    admit::Admission,
    engine_thread::EngineHandle,
    inflight::Inflight,
    metrics::Metrics,
    routing::AcceptRouting,
    text::{TextExecutor, TextSize},
};

/// The state that all calls share.
#[derive(Clone)]
pub struct Worker {
    /// Id of the worker in responses.
    pub id: Arc<str>,
    /// Id of this process.
    pub instance_id: Arc<str>,
    /// Name of the model in requests.
    pub model_name: Arc<str>,
    /// The model.
    pub model: Arc<Model>,
    /// The chat templates of the model.
    pub templates: Arc<Renderer>,
    /// Handle of the engine thread.
    pub engine: EngineHandle,
    /// The calls in flight.
    pub inflight: Inflight,
    /// The metrics.
    pub metrics: Metrics,
    /// Tokenises and detokenises.
    pub text: TextExecutor,
    /// Limits on connections and streams.
    pub bounds: Bounds,
    /// Peers whose `routing` is accepted.
    pub accept_routing: AcceptRouting,
    /// Routers, by their certificates.
    pub router_identity: Arc<[IdentityPattern]>,
}

impl Worker {
    /// Returns the limits that requests are validated against.
    pub fn admission(&self) -> Admission<'_> {
        Admission {
            model: &self.model,
            templates: &self.templates,
            name: &self.model_name,
            max_sequence_tokens: self.engine.max_sequence_tokens(),
            max_num_seqs: self.engine.max_num_seqs(),
        }
    }

    /// Validates and tokenises a request, on a thread for text.
    pub(crate) async fn admit(
        &self,
        request: GenerateRequest,
    ) -> Result<stoker_engine::Request, ServiceError> {
        let size = match &request.input {
            Some(Input::Prompt(text)) => TextSize::Bytes(text.len()),
            Some(Input::Chat(chat)) => TextSize::Rendered(chat.encoded_len()),
            _ => TextSize::Bytes(0),
        };
        let worker = self.clone();
        self.text.prompt(size, move || worker.admission().admit(request)).await
    }
}

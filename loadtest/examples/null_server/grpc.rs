//! `Generate` over gRPC.

use std::{io, pin::Pin};

use futures::{Stream, StreamExt, stream};
use stoker_proto::v1::{
    Accepted, FinishReason, Finished, GenerateRequest, GenerateResponse, TokenDelta, Usage,
    generate_request::Input,
    generate_response::Event,
    inference_server::{Inference, InferenceServer},
};
use stoker_shared::serve;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

use crate::Pace;

/// Tokens of a response without `max_tokens`.
const TOKENS: u32 = 128;

/// Serves on `listener`.
pub async fn serve(listener: TcpListener, pace: Pace) -> io::Result<()> {
    let bounds = serve::Bounds::new(&serve::LimitsConfig::default(), None);
    serve::server(&bounds)
        .add_service(InferenceServer::new(Service(pace)))
        .serve_with_incoming(serve::incoming(listener, &bounds))
        .await
        .map_err(io::Error::other)
}

struct Service(Pace);

#[tonic::async_trait]
impl Inference for Service {
    type GenerateStream = Pin<Box<dyn Stream<Item = Result<GenerateResponse, Status>> + Send>>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let request = request.into_inner();
        let pace = self.0;
        let tokens = request.stopping.and_then(|stopping| stopping.max_tokens).unwrap_or(TOKENS);
        let words = match &request.input {
            Some(Input::Prompt(text)) => text.split_whitespace().count(),
            _ => 0,
        };
        let prompt_tokens = u32::try_from(words).unwrap_or(u32::MAX);
        let accepted = Event::Accepted(Accepted {
            request_id: "null".into(),
            model: "null-model".into(),
            worker: "null".into(),
            prompt_tokens,
            max_tokens: tokens,
            ..Accepted::default()
        });
        let finished = Event::Finished(Finished {
            reason: FinishReason::Length.into(),
            usage: Some(Usage {
                prompt_tokens,
                completion_tokens: tokens,
                cached_prompt_tokens: 0,
            }),
            ..Finished::default()
        });
        let deltas = stream::iter(0..tokens).then(move |index| async move {
            pace.wait(index).await;
            Event::Token(TokenDelta {
                ids: vec![index],
                text: " word".into(),
                logprobs: Vec::new(),
            })
        });
        let events = stream::iter([accepted]).chain(deltas).chain(stream::iter([finished]));
        let messages =
            events.map(|event| Ok(GenerateResponse { choice: 0, event: Some(event), attempt: 1 }));
        Ok(Response::new(messages.boxed()))
    }
}

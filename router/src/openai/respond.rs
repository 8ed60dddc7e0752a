//! From requests to a response, streamed or in one piece.

use axum::response::Response;
use stoker_proto::v1::GenerateRequest;

use super::{
    OpenAi,
    error::ApiError,
    format::{Head, Kind},
    generation,
    headers::Context,
    options::Options,
    stream, unix_time, whole,
};

/// Runs `requests`, one for each prompt, and responds as `options` ask.
pub(super) async fn respond(
    api: &OpenAi,
    mut context: Context,
    kind: Kind,
    requests: Vec<GenerateRequest>,
    echoes: Vec<Option<String>>,
    options: Options,
) -> Result<Response, ApiError> {
    if let Some(user) = options.user.as_deref().filter(|_| api.tenant_from_user)
        && let Some(header) = api.server.tenants.header()
    {
        context.set_default(header, user);
    }
    let started = generation::start(api, &context, requests, echoes, &options).await;
    let mut generations = started.map_err(|error| error.renamed(&options.names))?;
    if kind == Kind::Completion {
        // Their log probabilities have the token that ended the response too.
        generations.end_tokens.clear();
    }
    let head = Head {
        id: format!("{}{}", kind.id_prefix(), context.id),
        object: kind.object(options.stream),
        created: unix_time(),
        model: generations.prompts.first().map(|prompt| prompt.model.clone()).unwrap_or_default(),
    };
    if options.stream {
        Ok(stream::respond(kind, head, generations, options))
    } else {
        whole::respond(kind, head, generations, &options).await
    }
}

//! From requests to a response, streamed or in one piece.

use axum::response::Response;
use stoker_proto::v1::{GenerateRequest, Stopping, stop_condition};

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
    let stopping = requests.first().and_then(|request| request.stopping.clone());
    let started = generation::start(api, &context, requests, echoes, &options).await;
    let generations = started.map_err(|error| error.renamed(&options.names))?;
    let model = generations.prompts.first().map(|prompt| prompt.model.clone()).unwrap_or_default();
    // Those of completions have the token that ended the response too.
    let hidden = if kind == Kind::Chat && options.logprobs {
        end_tokens(api, &model, &stopping.unwrap_or_default())
    } else {
        Vec::new()
    };
    let head = Head {
        id: format!("{}{}", kind.id_prefix(), context.id),
        object: kind.object(options.stream),
        created: unix_time(),
        model,
    };
    if options.stream {
        Ok(stream::respond(kind, head, generations, hidden, options))
    } else {
        whole::respond(kind, head, generations, &hidden, &options).await
    }
}

/// Returns the tokens that end a response without being a part of its text.
fn end_tokens(api: &OpenAi, model: &str, stopping: &Stopping) -> Vec<u32> {
    if stopping.include_stop_in_output {
        return Vec::new();
    }
    let own = stopping.conditions.iter().filter_map(|condition| match condition.kind {
        Some(stop_condition::Kind::TokenId(id)) => Some(id),
        _ => None,
    });
    own.chain(api.control.end_tokens(model)).collect()
}

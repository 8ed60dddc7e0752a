//! `/v1/completions`.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use serde::Deserialize;
use stoker_proto::v1::{GenerateRequest, TokenIds, generate_request::Input};

use super::{
    HttpRequest, OpenAi, body,
    error::ApiError,
    fields::Fields,
    format::Kind,
    generation::text_of,
    options::{self, Options},
    respond::respond,
};

/// Maximum number of prompts of a request.
const MAX_PROMPTS: usize = 128;
/// Maximum number of new tokens if the request sets none, as in OpenAI's API.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// What `prompt` may be.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Prompts {
    Text(String),
    Ids(Vec<u32>),
    Texts(Vec<String>),
    IdLists(Vec<Vec<u32>>),
}

/// Completes prompts.
pub(super) async fn create(
    State(api): State<Arc<OpenAi>>,
    request: HttpRequest,
) -> Result<Response, ApiError> {
    let (context, (inputs, request, options)) = body::parse(request, take).await?;
    let mut echoes = Vec::with_capacity(inputs.len());
    for input in &inputs {
        echoes.push(match input {
            _ if !options.echo => None,
            Input::TokenIds(tokens) => {
                Some(text_of(&api, &context, &request.model, tokens.ids.clone(), false).await?)
            }
            Input::Prompt(text) => Some(text.clone()),
            Input::Chat(_) => None,
        });
    }
    let requests = inputs.into_iter().map(|input| {
        let input = Some(input);
        GenerateRequest { input, ..request.clone() }
    });
    respond(&api, context, Kind::Completion, requests.collect(), echoes, options).await
}

pub(super) fn take(
    fields: &mut Fields<'_>,
) -> Result<(Vec<Input>, GenerateRequest, Options), ApiError> {
    let expected = "a string, a list of strings, a list of token ids or a list of such lists";
    let prompts: Option<Prompts> = fields.take("prompt", expected)?;
    let missing = || ApiError::invalid("prompt", "prompt: is missing");
    let ids = |ids| Input::TokenIds(TokenIds { ids });
    let inputs: Vec<Input> = match prompts.ok_or_else(missing)? {
        Prompts::Text(text) => vec![Input::Prompt(text)],
        Prompts::Ids(list) => vec![ids(list)],
        Prompts::Texts(texts) => texts.into_iter().map(Input::Prompt).collect(),
        Prompts::IdLists(lists) => lists.into_iter().map(ids).collect(),
    };
    if inputs.len() > MAX_PROMPTS {
        let message = format!("prompt: {} prompts; at most {MAX_PROMPTS}", inputs.len());
        return Err(ApiError::invalid("prompt", message));
    }
    let (mut request, mut options) = options::take(fields)?;
    options.echo = fields.flag("echo")?.unwrap_or(false);
    let logprobs: Option<u32> =
        fields.take("logprobs", "the number of most likely tokens to return, from 0 to 20")?;
    options.logprobs = logprobs.is_some();
    let response = request.response.get_or_insert_default();
    response.output_logprobs = options.logprobs;
    response.top_candidates = logprobs.unwrap_or(0);
    response.prompt_logprobs = options.logprobs && options.echo;
    response.prompt_token_ids |= response.prompt_logprobs;
    options.names.push(("top_logprobs", "logprobs"));
    let stopping = request.stopping.get_or_insert_default();
    let max_tokens = stopping.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS);
    options.only_echo = options.echo && *max_tokens == 0;
    if options.only_echo {
        *max_tokens = 1;
    }
    request.no_special_tokens = fields.flag("add_special_tokens")? == Some(false);
    Ok((inputs, request, options))
}

//! `/tokenize` and `/detokenize`, as in vLLM.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use futures::future::try_join_all;
use serde::Serialize;
use stoker_proto::v1::{
    GetModelInfoRequest, TokenizeRequest, control_server::Control, tokenize_request::Input,
};

use super::{
    HttpRequest, OpenAi, body, chat, error::ApiError, fields::Fields, generation::text_of,
    json_response,
};

/// Maximum number of tokens whose texts are returned, each of which is a call to a worker.
const MAX_TEXTS: usize = 1024;

#[derive(Debug, Serialize)]
struct Tokens {
    count: usize,
    max_model_len: u32,
    tokens: Vec<u32>,
    /// The texts of the tokens, if they are asked for.
    token_strs: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
struct Text {
    prompt: String,
}

/// Converts a text, or a conversation, to token ids.
pub(super) async fn tokenize(
    State(api): State<Arc<OpenAi>>,
    request: HttpRequest,
) -> Result<Response, ApiError> {
    let (context, (request, with_texts)) = body::parse(request, take).await?;
    let model = request.model.clone();
    let info = context.request(GetModelInfoRequest { model: model.clone() });
    let info = api.control.get_model_info(info).await?.into_inner();
    let tokens = api.control.tokenize(context.request(request)).await?.into_inner().ids;
    let token_strs = if with_texts {
        if tokens.len() > MAX_TEXTS {
            let message =
                format!("return_token_strs: {} tokens; at most {MAX_TEXTS}", tokens.len());
            return Err(ApiError::invalid("return_token_strs", message));
        }
        let texts = tokens.iter().map(|id| text_of(&api, &context, &model, vec![*id], true));
        Some(try_join_all(texts).await?)
    } else {
        None
    };
    let max_model_len = info.context_length;
    Ok(json_response(&Tokens { count: tokens.len(), max_model_len, tokens, token_strs }))
}

fn take(fields: &mut Fields<'_>) -> Result<(TokenizeRequest, bool), ApiError> {
    let input = match (fields.text("prompt")?, chat::conversation(fields)?) {
        (Some(text), None) => Input::Text(text),
        (None, Some(chat)) => Input::Chat(chat),
        _ => return Err(ApiError::invalid("prompt", "give either prompt or messages")),
    };
    let request = TokenizeRequest {
        model: fields.text("model")?.unwrap_or_default(),
        input: Some(input),
        no_special_tokens: fields.flag("add_special_tokens")? == Some(false),
        special_tokens_as_text: false,
    };
    Ok((request, fields.flag("return_token_strs")?.unwrap_or(false)))
}

/// Converts token ids to text.
pub(super) async fn detokenize(
    State(api): State<Arc<OpenAi>>,
    request: HttpRequest,
) -> Result<Response, ApiError> {
    let (context, (model, ids)) = body::parse(request, |fields| {
        let model = fields.text("model")?.unwrap_or_default();
        let ids = fields.take("tokens", "a list of token ids")?;
        let missing = || ApiError::invalid("tokens", "tokens: is missing");
        Ok((model, ids.ok_or_else(missing)?))
    })
    .await?;
    let prompt = text_of(&api, &context, &model, ids, true).await?;
    Ok(json_response(&Text { prompt }))
}

//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use stoker_proto::v1::{Chat, GenerateRequest, generate_request::Input};

use super::{
    HttpRequest, OpenAi, body,
    error::ApiError,
    fields::Fields,
    format::Kind,
    messages::Message,
    options::{self, Options},
    respond::respond,
};

/// Continues a conversation.
pub(super) async fn create(
    State(api): State<Arc<OpenAi>>,
    request: HttpRequest,
) -> Result<Response, ApiError> {
    let (context, (request, options)) = body::parse(request, take).await?;
    respond(&api, context, Kind::Chat, vec![request], vec![None], options).await
}

pub(super) fn take(fields: &mut Fields<'_>) -> Result<(GenerateRequest, Options), ApiError> {
    let chat = conversation(fields)?;
    let chat = chat.ok_or_else(|| ApiError::invalid("messages", "messages: is missing"))?;
    let (mut request, mut options) = options::take(fields)?;
    options.logprobs = fields.flag("logprobs")?.unwrap_or(false);
    let response = request.response.get_or_insert_default();
    response.output_logprobs = options.logprobs;
    response.top_candidates = fields.count("top_logprobs")?.unwrap_or(0);
    if response.top_candidates > 0 && !options.logprobs {
        let message = "top_logprobs: is only allowed when logprobs is true";
        return Err(ApiError::invalid("top_logprobs", message));
    }
    request.input = Some(Input::Chat(chat));
    Ok((request, options))
}

/// Takes the conversation, and how its template is rendered.
pub(super) fn conversation(fields: &mut Fields<'_>) -> Result<Option<Chat>, ApiError> {
    let messages: Option<Vec<Message>> =
        fields.take("messages", "a list of messages, each with a role and a content")?;
    let Some(messages) = messages else { return Ok(None) };
    let messages = messages.into_iter().enumerate();
    let variables = fields.take_raw("chat_template_kwargs");
    Ok(Some(Chat {
        messages: messages.map(|(i, message)| message.into_wire(i)).collect::<Result<_, _>>()?,
        add_generation_prompt: fields.flag("add_generation_prompt")?,
        template_kwargs_json: variables.map(|json| json.get().to_owned()).unwrap_or_default(),
        tools_json: Vec::new(),
    }))
}

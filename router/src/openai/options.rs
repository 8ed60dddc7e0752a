//! Fields that chat and completions have in common.

use std::collections::BTreeMap;

use serde::Deserialize;
use stoker_proto::v1::{
    GenerateRequest, ResponseOptions, Sampling, StopCondition, Stopping, stop_condition::Kind,
};

use super::{error::ApiError, fields::Fields};

/// Fields of OpenAI's API that ask for what this version does not have.
const UNSUPPORTED: [&str; 23] = [
    "tools",
    "functions",
    "suffix",
    "audio",
    "prediction",
    "web_search_options",
    "moderation",
    // vLLM's.
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "use_beam_search",
    "bad_words",
    "allowed_token_ids",
    "truncate_prompt_tokens",
    "continue_final_message",
    "chat_template",
    "documents",
    "mm_processor_kwargs",
    "logits_processors",
    "kv_transfer_params",
    "return_tokens_as_token_ids",
];
/// Fields of OpenAI's API that need no effect: what they describe is the case here anyway, or is
/// the business of an account.
const WITHOUT_EFFECT: [&str; 14] = [
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
    "reasoning_effort",
    "verbosity",
    "length_penalty",
    "early_stopping",
    "spaces_between_special_tokens",
    "detokenize",
    "request_id",
];

/// What a request wants besides its input.
#[derive(Debug, Default)]
pub(super) struct Options {
    /// Whether the response is streamed.
    pub(super) stream: bool,
    /// Whether a stream has a last chunk with the usage.
    pub(super) include_usage: bool,
    /// Whether every chunk has the usage so far.
    pub(super) continuous_usage: bool,
    /// Whether token ids are returned.
    pub(super) token_ids: bool,
    /// Whether log probabilities are returned.
    pub(super) logprobs: bool,
    /// Completions: whether the text begins with the prompt.
    pub(super) echo: bool,
    /// Choices per prompt.
    pub(super) choices: u32,
    /// Completions: whether only the prompt is wanted. The token that a request has at least is left
    /// out.
    pub(super) only_echo: bool,
    /// Fields that the request has under another name.
    pub(super) names: Vec<(&'static str, &'static str)>,
    /// Who the client says that it is.
    pub(super) user: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
    // Padding against eavesdroppers, which OpenAI adds to its own streams.
    #[serde(rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Several(Vec<String>),
}

#[derive(Debug, Deserialize)]
struct ResponseFormat {
    r#type: String,
}

/// Takes the fields in common from `fields`. The request has everything but its input, and the
/// fields that only one of both kinds has.
pub(super) fn take(fields: &mut Fields<'_>) -> Result<(GenerateRequest, Options), ApiError> {
    let stream = fields.flag("stream")?.unwrap_or(false);
    let stream_options: Option<StreamOptions> =
        fields.take("stream_options", "an object such as {\"include_usage\": true}")?;
    if stream_options.is_some() && !stream {
        let message = "stream_options: is only allowed when stream is true";
        return Err(ApiError::invalid("stream_options", message));
    }
    let stream_options = stream_options.unwrap_or_default();
    let format: Option<ResponseFormat> =
        fields.take("response_format", "an object such as {\"type\": \"text\"}")?;
    if format.is_some_and(|format| format.r#type != "text") {
        return Err(ApiError::unsupported("response_format"));
    }
    let sampling = sampling(fields)?;
    let (stopping, is_newer) = stopping(fields)?;
    let newer = ("max_tokens", "max_completion_tokens");
    let options = Options {
        stream,
        include_usage: stream_options.include_usage.unwrap_or(false),
        continuous_usage: stream_options.continuous_usage_stats.unwrap_or(false),
        token_ids: fields.flag("return_token_ids")?.unwrap_or(false),
        logprobs: false,
        echo: false,
        only_echo: false,
        names: is_newer.then_some(newer).into_iter().collect(),
        choices: sampling.num_sequences.unwrap_or(1),
        user: fields.text("user")?,
    };
    let request = GenerateRequest {
        model: fields.text("model")?.unwrap_or_default(),
        sampling: Some(sampling),
        stopping: Some(stopping),
        response: Some(ResponseOptions {
            prompt_token_ids: options.token_ids,
            ..ResponseOptions::default()
        }),
        priority: priority(fields)?,
        cache_salt: fields.text("cache_salt")?.unwrap_or_default(),
        ..GenerateRequest::default()
    };
    if fields.flag("skip_special_tokens")? == Some(false) {
        return Err(ApiError::unsupported("skip_special_tokens"));
    }
    if fields.count("best_of")?.is_some_and(|best_of| best_of > 1) {
        return Err(ApiError::unsupported("best_of"));
    }
    tool_choice(fields)?;
    modalities(fields)?;
    fields.refuse(&UNSUPPORTED)?;
    fields.ignore(&WITHOUT_EFFECT);
    Ok((request, options))
}

fn sampling(fields: &mut Fields<'_>) -> Result<Sampling, ApiError> {
    let bias: Option<BTreeMap<String, f32>> =
        fields.take("logit_bias", "an object of token ids and numbers")?;
    let mut logit_bias = std::collections::HashMap::new();
    for (token, bias) in bias.unwrap_or_default() {
        let id = token.parse().map_err(|_| {
            let message = format!("logit_bias: {token:?} is not a token id");
            ApiError::invalid("logit_bias", message)
        })?;
        logit_bias.insert(id, bias);
    }
    let top_k: Option<i64> = fields.take("top_k", "a whole number")?;
    let seed: Option<i64> = fields.take("seed", "a whole number of 64 bits")?;
    Ok(Sampling {
        temperature: fields.number("temperature")?,
        top_p: fields.number("top_p")?,
        // -1 stands for no limit, as in vLLM.
        top_k: top_k.map(|k| u32::try_from(k).unwrap_or(if k < 0 { 0 } else { u32::MAX })),
        min_p: fields.number("min_p")?,
        frequency_penalty: fields.number("frequency_penalty")?,
        presence_penalty: fields.number("presence_penalty")?,
        repetition_penalty: fields.number("repetition_penalty")?,
        seed: seed.map(i64::cast_unsigned),
        num_sequences: fields.count("n")?,
        logit_bias,
    })
}

/// Returns also whether the newer name of the limit is used.
fn stopping(fields: &mut Fields<'_>) -> Result<(Stopping, bool), ApiError> {
    let stop: Option<Stop> = fields.take("stop", "a string or a list of strings")?;
    let texts = match stop {
        None => Vec::new(),
        Some(Stop::One(text)) => vec![text],
        Some(Stop::Several(texts)) => texts,
    };
    let ids: Option<Vec<u32>> = fields.take("stop_token_ids", "a list of token ids")?;
    let conditions = texts.into_iter().map(Kind::Text);
    let conditions = conditions.chain(ids.unwrap_or_default().into_iter().map(Kind::TokenId));
    let newer = fields.count("max_completion_tokens")?;
    let stopping = Stopping {
        max_tokens: newer.or(fields.count("max_tokens")?),
        min_tokens: fields.count("min_tokens")?,
        conditions: conditions.map(|kind| StopCondition { kind: Some(kind) }).collect(),
        ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
        include_stop_in_output: fields.flag("include_stop_str_in_output")?.unwrap_or(false),
    };
    Ok((stopping, newer.is_some()))
}

/// vLLM's priorities have 0 in the middle, which is the default; ours begin there.
fn priority(fields: &mut Fields<'_>) -> Result<Option<u32>, ApiError> {
    fields.take("priority", "a whole number from 0, the most urgent, to 1000")
}

/// Without tools, the choice between them is none.
fn tool_choice(fields: &mut Fields<'_>) -> Result<(), ApiError> {
    for name in ["tool_choice", "function_call"] {
        let choice = fields.take_raw(name).map(|choice| choice.get());
        if choice.is_some_and(|choice| !matches!(choice, "\"none\"" | "\"auto\"")) {
            return Err(ApiError::unsupported(name));
        }
    }
    Ok(())
}

fn modalities(fields: &mut Fields<'_>) -> Result<(), ApiError> {
    let modalities: Option<Vec<String>> = fields.take("modalities", "a list such as [\"text\"]")?;
    if modalities.unwrap_or_default().iter().any(|modality| modality != "text") {
        return Err(ApiError::unsupported("modalities"));
    }
    Ok(())
}

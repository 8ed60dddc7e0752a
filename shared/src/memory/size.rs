//! The size of a request: decoded in memory, and encoded on the wire.

use prost::Message;
use stoker_proto::v1::{
    Chat, GenerateRequest, Resume, Sampling, Stopping, generate_request::Input, guided::Form,
    stop_condition::Kind,
};

/// Slots of a hash map per entry in the worst case: it doubles when it is 7/8 full.
const MAP_SLOTS_PER_ENTRY: usize = 3;
/// Approximate overhead of one heap allocation, in bytes.
const ALLOCATION_OVERHEAD: usize = 16;

/// Returns the size of the encoded request, in bytes.
pub fn encoded_bytes(request: &GenerateRequest) -> u64 {
    request.encoded_len() as u64
}

/// Returns the memory of the decoded request, in bytes: what its fields have allocated, spare
/// capacity included. A token id takes four bytes here and as little as one on the wire.
pub fn allocated_bytes(request: &GenerateRequest) -> u64 {
    let names = [&request.request_id, &request.model, &request.cache_salt];
    let mut bytes = size_of::<GenerateRequest>() + names.into_iter().map(text).sum::<usize>();
    bytes += match &request.input {
        Some(Input::Prompt(prompt)) => text(prompt),
        Some(Input::TokenIds(tokens)) => list(&tokens.ids),
        Some(Input::Chat(messages)) => chat(messages),
        None => 0,
    };
    bytes += request.sampling.as_ref().map_or(0, sampling);
    bytes += request.stopping.as_ref().map_or(0, stopping);
    bytes += match request.guided.as_ref().and_then(|guided| guided.form.as_ref()) {
        Some(Form::JsonSchema(form) | Form::Regex(form) | Form::EbnfGrammar(form)) => text(form),
        Some(Form::Choice(choices)) => texts(&choices.options),
        Some(Form::JsonObject(_)) | None => 0,
    };
    if let Some(routing) = &request.routing {
        bytes += text(&routing.tenant) + routing.resume.as_ref().map_or(0, resume);
    }
    bytes as u64
}

fn text(text: &String) -> usize {
    text.capacity() + ALLOCATION_OVERHEAD
}

fn list<T>(list: &Vec<T>) -> usize {
    list.capacity() * size_of::<T>() + ALLOCATION_OVERHEAD
}

fn texts(all: &Vec<String>) -> usize {
    list(all) + all.iter().map(text).sum::<usize>()
}

fn chat(chat: &Chat) -> usize {
    let messages = chat.messages.iter().map(|message| {
        let fields = [&message.role, &message.content, &message.name, &message.tool_call_id];
        fields.into_iter().map(text).sum::<usize>() + texts(&message.tool_calls_json)
    });
    list(&chat.messages)
        + messages.sum::<usize>()
        + texts(&chat.tools_json)
        + text(&chat.template_kwargs_json)
}

fn sampling(sampling: &Sampling) -> usize {
    let entry = size_of::<(u32, f32)>() + 1;
    sampling.logit_bias.len() * entry * MAP_SLOTS_PER_ENTRY
}

fn stopping(stopping: &Stopping) -> usize {
    let strings = stopping.conditions.iter().map(|condition| match &condition.kind {
        Some(Kind::Text(stop)) => text(stop),
        Some(Kind::TokenId(_)) | None => 0,
    });
    list(&stopping.conditions) + strings.sum::<usize>()
}

fn resume(resume: &Resume) -> usize {
    let choices = resume.choices.iter().map(|choice| list(&choice.token_ids));
    list(&resume.choices) + choices.sum::<usize>() + text(&resume.digest)
}

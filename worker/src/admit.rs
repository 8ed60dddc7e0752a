//! From a request on the wire to one that the engine can run: checks, defaults, tokens.

use std::time::Instant;

use stoker_engine::{Model, Request, Sampling, Stopping};
use stoker_proto::v1::{
    self as proto, GenerateRequest, generate_request::Input, stop_condition::Kind,
};
use stoker_shared::{ServiceError, validate};

/// What requests are checked against.
pub struct Admission<'a> {
    /// The model and its limits.
    pub model: &'a Model,
    /// What requests may call it.
    pub name: &'a str,
    /// The longest sequence that can run, prompt and answer together.
    pub room: usize,
}

impl Admission<'_> {
    /// Checks and tokenises. Takes time in proportion to the prompt: call it off the async threads.
    pub fn admit(&self, request: GenerateRequest) -> Result<Request, ServiceError> {
        validate::generate(&request)?;
        self.check_model(&request.model)?;
        refuse_unsupported(&request)?;
        let sampling = sampling(&request.sampling.unwrap_or_default());
        let stopping = self.stopping(request.stopping.unwrap_or_default())?;
        let prompt = self.tokens(request.input)?;
        Ok(Request { prompt, sampling, stopping, arrived: Instant::now() })
    }

    /// An empty name means the only model there is.
    pub fn check_model(&self, name: &str) -> Result<(), ServiceError> {
        if name.is_empty() || name == self.name {
            return Ok(());
        }
        let (model, available) = (name.to_owned(), vec![self.name.to_owned()]);
        Err(ServiceError::UnknownModel { model, available })
    }

    fn tokens(&self, input: Option<Input>) -> Result<Vec<u32>, ServiceError> {
        let (field, ids) = match input {
            Some(Input::Prompt(text)) => {
                // Before the text is tokenised, which takes time with its length.
                let least = self.model.tokenizer.least_tokens(text.len());
                if least >= self.room {
                    let size = format!("{} bytes are at least {least} tokens", text.len());
                    return Err(self.too_long("prompt", &size));
                }
                let ids = self.model.tokenizer.encode(&text, true);
                ("prompt", ids.map_err(|error| ServiceError::invalid("prompt", error.to_string()))?)
            }
            Some(Input::TokenIds(tokens)) => {
                self.check_vocabulary("token_ids", &tokens.ids)?;
                ("token_ids", tokens.ids)
            }
            Some(Input::Chat(_)) => return Err(ServiceError::Unsupported("chat".into())),
            None => return Err(ServiceError::invalid("input", "is missing")),
        };
        if ids.is_empty() {
            return Err(ServiceError::invalid(field, "has no tokens; send some text"));
        }
        if ids.len() >= self.room {
            return Err(self.too_long(field, &format!("{} tokens", ids.len())));
        }
        Ok(ids)
    }

    fn too_long(&self, field: &str, size: &str) -> ServiceError {
        let (room, most) = (self.room, self.room.saturating_sub(1));
        let reason = format!(
            "{size}; at most {most} tokens leave room for an answer in a context of {room}"
        );
        ServiceError::invalid(field, reason)
    }

    /// Ids index the embedding, so every one is checked.
    pub fn check_vocabulary(&self, field: &str, ids: &[u32]) -> Result<(), ServiceError> {
        let size = self.model.config.vocab_size;
        match ids.iter().enumerate().find(|(_, id)| **id as usize >= size) {
            None => Ok(()),
            Some((i, id)) => Err(ServiceError::invalid(
                format!("{field}[{i}]"),
                format!("{id} is not below {size}, the size of the vocabulary"),
            )),
        }
    }

    fn stopping(&self, wanted: proto::Stopping) -> Result<Stopping, ServiceError> {
        let mut stopping = Stopping {
            max_tokens: wanted.max_tokens.map(|n| n as usize),
            ignore_eos: wanted.ignore_eos,
            include_stop: wanted.include_stop_in_output,
            ..Stopping::default()
        };
        for (i, condition) in wanted.conditions.into_iter().enumerate() {
            match condition.kind {
                Some(Kind::Text(text)) => stopping.strings.push(text),
                Some(Kind::TokenId(id)) => {
                    self.check_vocabulary(&format!("stopping.conditions[{i}].token_id"), &[id])?;
                    stopping.token_ids.push(id);
                }
                None => {}
            }
        }
        Ok(stopping)
    }
}

fn sampling(wanted: &proto::Sampling) -> Sampling {
    let default = Sampling::default();
    Sampling {
        temperature: wanted.temperature.unwrap_or(default.temperature),
        top_k: wanted.top_k.map_or(default.top_k, |k| k as usize),
        top_p: wanted.top_p.unwrap_or(default.top_p),
        min_p: wanted.min_p.unwrap_or(default.min_p),
        seed: wanted.seed.unwrap_or_default(),
        choice: 0,
    }
}

/// Fields of the contract that this version cannot serve are refused, never ignored.
fn refuse_unsupported(request: &GenerateRequest) -> Result<(), ServiceError> {
    let sampling = request.sampling.as_ref();
    let stopping = request.stopping.as_ref();
    let response = request.response.as_ref();
    let differs = |value: Option<f32>, neutral: f32| value.is_some_and(|v| v != neutral);
    let used = [
        ("sampling.frequency_penalty", sampling.is_some_and(|s| differs(s.frequency_penalty, 0.0))),
        ("sampling.presence_penalty", sampling.is_some_and(|s| differs(s.presence_penalty, 0.0))),
        (
            "sampling.repetition_penalty",
            sampling.is_some_and(|s| differs(s.repetition_penalty, 1.0)),
        ),
        (
            "sampling.num_sequences",
            sampling.is_some_and(|s| s.num_sequences.is_some_and(|n| n > 1)),
        ),
        ("sampling.logit_bias", sampling.is_some_and(|s| !s.logit_bias.is_empty())),
        ("stopping.min_tokens", stopping.is_some_and(|s| s.min_tokens.is_some_and(|n| n > 0))),
        ("response.output_logprobs", response.is_some_and(|r| r.output_logprobs)),
        ("response.top_candidates", response.is_some_and(|r| r.top_candidates > 0)),
        ("response.prompt_logprobs", response.is_some_and(|r| r.prompt_logprobs)),
        ("guided", request.guided.as_ref().is_some_and(|g| g.form.is_some())),
        ("priority", request.priority.is_some()),
        ("cache_salt", !request.cache_salt.is_empty()),
        ("routing.resume", request.routing.as_ref().is_some_and(|r| r.resume.is_some())),
    ];
    match used.into_iter().find(|(_, used)| *used) {
        Some((field, _)) => Err(ServiceError::Unsupported(field.into())),
        None => Ok(()),
    }
}

//! Converts a wire request to an engine request: validation, defaults and tokenisation.

mod resume;

use std::{num::NonZeroU32, time::Instant};

use prost_types::Timestamp;
use stoker_chat_template::Renderer;
use stoker_engine::{
    Adjustments, Logprobs, Model, Request, Sampling, Scope, Stopping, scheduler::QueueKey,
    tokenizer::SpecialTokens,
};
use stoker_proto::v1::{
    self as proto, GenerateRequest, Resume, generate_request::Input, stop_condition::Kind,
};
use stoker_shared::{ServiceError, validate};

use crate::chat;

/// The limits that requests are validated against.
pub struct Admission<'a> {
    /// The model and its limits.
    pub model: &'a Model,
    /// Its chat templates.
    pub templates: &'a Renderer,
    /// Name of the model in requests.
    pub name: &'a str,
    /// Longest sequence that can run on this worker, prompt and response together, in tokens: the
    /// smaller of the model's context and the capacity of the KV cache.
    pub max_sequence_tokens: usize,
    /// Maximum number of sequences in one batch.
    pub max_num_seqs: usize,
}

impl Admission<'_> {
    /// Validates and tokenises a request. Takes time proportional to the length of the prompt, so
    /// it must not run on an async thread.
    pub fn admit(&self, request: GenerateRequest) -> Result<Request, ServiceError> {
        validate::generate(&request)?;
        self.check_model(&request.model)?;
        reject_unsupported(&request)?;
        let tenant = request.routing.as_ref().map(|routing| routing.tenant.as_str());
        let queue_key = QueueKey {
            priority: validate::priority(&request),
            tenant: tenant.unwrap_or_default().into(),
        };
        let sampling_options = request.sampling.unwrap_or_default();
        let num_sequences = self.num_sequences(&sampling_options)?;
        let adjustments = self.adjustments(&sampling_options)?;
        let mut stopping = self.stopping(request.stopping.unwrap_or_default())?;
        let special = SpecialTokens {
            add: !request.no_special_tokens,
            parse: !request.special_tokens_as_text,
        };
        // A client that calls a worker directly is the tenant "".
        let routing = request.routing.unwrap_or_default();
        let prompt = self.tokens(request.input, special, routing.template_time)?;
        let resume = routing.resume;
        let max_tokens = self.max_tokens(&stopping, prompt.len(), resume.as_ref())?;
        stopping.max_tokens = Some(max_tokens);
        let accepted_before = resume.is_some();
        let resumed = match resume {
            Some(resume) => self.resumed(resume, num_sequences.get(), prompt.len(), max_tokens)?,
            None => Vec::new(),
        };
        Ok(Request {
            prompt: prompt.into(),
            sampling: sampling(&sampling_options),
            adjustments,
            num_sequences,
            stopping,
            logprobs: logprobs(request.response.unwrap_or_default()),
            resumed,
            accepted_before,
            suspect: routing.suspect,
            scope: Scope::shared(routing.tenant, request.cache_salt),
            bypass_prefix_cache: request.bypass_prefix_cache,
            arrived: Instant::now(),
            queue_key,
            deadline: None,
        })
    }

    /// Checks the name of the model. An empty name stands for the only model of this worker.
    pub fn check_model(&self, name: &str) -> Result<(), ServiceError> {
        if name.is_empty() || name == self.name {
            return Ok(());
        }
        let (model, available) = (name.to_owned(), vec![self.name.to_owned()]);
        Err(ServiceError::UnknownModel { model, available })
    }

    fn tokens(
        &self,
        input: Option<Input>,
        special: SpecialTokens,
        template_time: Option<Timestamp>,
    ) -> Result<Vec<u32>, ServiceError> {
        let (field, ids) = match input {
            Some(Input::Prompt(text)) => ("prompt", self.encode("prompt", &text, special)?),
            Some(Input::TokenIds(tokens)) => {
                self.check_vocabulary("token_ids", &tokens.ids)?;
                ("token_ids", tokens.ids)
            }
            Some(Input::Chat(chat)) => {
                let text = chat::render(self.templates, &chat, template_time)?;
                ("chat", self.encode("chat", &text, SpecialTokens::RENDERED)?)
            }
            None => return Err(ServiceError::invalid("input", "is missing")),
        };
        if ids.is_empty() {
            return Err(ServiceError::invalid(field, "has no tokens; send at least one"));
        }
        self.check_prompt(field, ids.len(), || format!("{} tokens", ids.len()))?;
        Ok(ids)
    }

    fn encode(
        &self,
        field: &str,
        text: &str,
        special: SpecialTokens,
    ) -> Result<Vec<u32>, ServiceError> {
        // Checked before tokenising, which takes time proportional to the text's length.
        let min_tokens = self.model.tokenizer.min_token_count(text.len());
        let size = || format!("{} bytes are at least {min_tokens} tokens", text.len());
        self.check_prompt(field, min_tokens, size)?;
        let ids = self.model.tokenizer.encode_prompt(text, special);
        ids.map_err(|error| ServiceError::invalid(field, error.to_string()))
    }

    /// Rejects a prompt that leaves no token for a response.
    fn check_prompt(
        &self,
        field: &str,
        tokens: usize,
        size: impl Fn() -> String,
    ) -> Result<(), ServiceError> {
        let context = self.model.config.context_length;
        if tokens >= context {
            let (size, max) = (size(), context.saturating_sub(1));
            let no_room = validate::LEAVES_NO_ROOM;
            // Clients of OpenAI's API recognise the first words.
            let reason =
                format!("the prompt is too long: {size}; at most {max} tokens {no_room} {context}");
            return Err(ServiceError::invalid(field, reason));
        }
        if tokens >= self.max_sequence_tokens {
            return Err(self.exceeds(&format!("{field}: {}", size()), tokens + 1));
        }
        Ok(())
    }

    /// Returns the error of a request whose `tokens` fit the model's context, but not the KV cache
    /// of this worker.
    fn exceeds(&self, what: &str, tokens: usize) -> ServiceError {
        let what = format!(
            "{what}: {tokens} tokens of KV cache are needed, and this worker has {} \
             (--kv-cache-memory)",
            self.max_sequence_tokens
        );
        let needed_tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        ServiceError::ExceedsWorker { what, needed_tokens }
    }

    /// Returns the limit on new tokens after a prompt of `prompt` tokens. The first worker that
    /// accepts the request decides it, and `resume` carries the decision to the next workers.
    fn max_tokens(
        &self,
        stopping: &Stopping,
        prompt: usize,
        resume: Option<&Resume>,
    ) -> Result<usize, ServiceError> {
        let context = self.model.config.context_length;
        let (remaining, min_tokens) = (context.saturating_sub(prompt), stopping.min_tokens);
        if min_tokens > remaining {
            let why = format!(
                "{min_tokens} is above {remaining}, what a prompt of {prompt} tokens leaves in a \
                 context of {context}"
            );
            return Err(ServiceError::invalid("stopping.min_tokens", why));
        }
        let decided = resume.map_or(0, |resume| resume.max_tokens as usize);
        let max_tokens = match stopping.max_tokens {
            _ if decided > 0 => decided,
            Some(requested) => requested.min(remaining),
            // The router, not this worker, knows the capacity of other workers.
            None => self.max_sequence_tokens.saturating_sub(prompt).max(min_tokens),
        };
        if max_tokens > remaining {
            let why = format!(
                "max_tokens {max_tokens} is above {remaining}, what a prompt of {prompt} leaves in \
                 a context of {context}"
            );
            return Err(resume::mismatch("max_tokens", &why));
        }
        if prompt + max_tokens > self.max_sequence_tokens {
            let what = format!("a prompt of {prompt} tokens and up to {max_tokens} new ones");
            return Err(self.exceeds(&what, prompt + max_tokens));
        }
        Ok(max_tokens)
    }

    /// Checks every id, because ids index the embedding.
    pub fn check_vocabulary(&self, field: &str, ids: &[u32]) -> Result<(), ServiceError> {
        let mut ids = ids.iter().enumerate();
        ids.try_for_each(|(i, id)| self.check_token(|| format!("{field}[{i}]"), *id))
    }

    fn check_token(&self, field: impl FnOnce() -> String, id: u32) -> Result<(), ServiceError> {
        let size = self.model.config.vocab_size;
        if (id as usize) < size {
            return Ok(());
        }
        let problem = format!("{id} is not below {size}, the size of the vocabulary");
        Err(ServiceError::invalid(field(), problem))
    }

    /// Returns the number of sequences, all of which must fit into one batch.
    fn num_sequences(&self, sampling: &proto::Sampling) -> Result<NonZeroU32, ServiceError> {
        let count = sampling.num_sequences.and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
        let limit = self.max_num_seqs;
        if count.get() as usize <= limit {
            return Ok(count);
        }
        let what = format!(
            "sampling.num_sequences: {count} is above {limit}, what a batch of this worker holds \
             (--max-num-seqs)"
        );
        Err(ServiceError::ExceedsWorker { what, needed_tokens: 0 })
    }

    fn adjustments(&self, sampling: &proto::Sampling) -> Result<Adjustments, ServiceError> {
        let mut bias: Vec<_> = sampling.logit_bias.iter().map(|(id, bias)| (*id, *bias)).collect();
        // The order of a map is random, and the same request should get the same error.
        bias.sort_unstable_by_key(|(id, _)| *id);
        for (id, _) in &bias {
            self.check_token(|| format!("sampling.logit_bias[{id}]"), *id)?;
        }
        let default = Adjustments::default();
        Ok(Adjustments {
            bias,
            repetition_penalty: sampling.repetition_penalty.unwrap_or(default.repetition_penalty),
            frequency_penalty: sampling.frequency_penalty.unwrap_or(default.frequency_penalty),
            presence_penalty: sampling.presence_penalty.unwrap_or(default.presence_penalty),
        })
    }

    fn stopping(&self, options: proto::Stopping) -> Result<Stopping, ServiceError> {
        let mut stopping = Stopping {
            max_tokens: options.max_tokens.map(|n| n as usize),
            min_tokens: options.min_tokens.unwrap_or_default() as usize,
            ignore_eos: options.ignore_eos,
            include_stop: options.include_stop_in_output,
            ..Stopping::default()
        };
        for (i, condition) in options.conditions.into_iter().enumerate() {
            match condition.kind {
                Some(Kind::Text(text)) => stopping.strings.push(text),
                Some(Kind::TokenId(id)) => {
                    self.check_token(|| format!("stopping.conditions[{i}].token_id"), id)?;
                    stopping.token_ids.push(id);
                }
                None => {}
            }
        }
        Ok(stopping)
    }
}

fn sampling(options: &proto::Sampling) -> Sampling {
    let default = Sampling::default();
    Sampling {
        temperature: options.temperature.unwrap_or(default.temperature),
        top_k: options.top_k.map_or(default.top_k, |k| k as usize),
        top_p: options.top_p.unwrap_or(default.top_p),
        min_p: options.min_p.unwrap_or(default.min_p),
        seed: options.seed.unwrap_or_default(),
        choice: 0,
    }
}

fn logprobs(options: proto::ResponseOptions) -> Logprobs {
    Logprobs {
        output: options.output_logprobs,
        prompt: options.prompt_logprobs,
        top: options.top_candidates as usize,
    }
}

/// Rejects fields of the contract that this version cannot serve. They are never ignored.
fn reject_unsupported(request: &GenerateRequest) -> Result<(), ServiceError> {
    let used = [("guided", request.guided.as_ref().is_some_and(|g| g.form.is_some()))];
    match used.into_iter().find(|(_, used)| *used) {
        Some((field, _)) => Err(ServiceError::Unsupported(field.into())),
        None => Ok(()),
    }
}

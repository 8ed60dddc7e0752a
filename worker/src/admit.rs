//! From a request on the wire to one that the engine can run: checks, defaults, tokens.

mod resume;

use std::{num::NonZeroU32, time::Instant};

use stoker_engine::{
    Adjustments, Logprobs, Model, Request, Sampling, Scope, Stopping, scheduler::QueueKey,
};
use stoker_proto::v1::{
    self as proto, GenerateRequest, Resume, generate_request::Input, stop_condition::Kind,
};
use stoker_shared::{ServiceError, validate};

/// What requests are checked against.
pub struct Admission<'a> {
    /// The model and its limits.
    pub model: &'a Model,
    /// What requests may call it.
    pub name: &'a str,
    /// The longest sequence that can run here, prompt and response together: the model's context, or what the KV
    /// cache holds where that is less.
    pub room: usize,
    /// Sequences in one batch.
    pub max_num_seqs: usize,
}

impl Admission<'_> {
    /// Checks and tokenises. Takes time in proportion to the prompt: call it off the async threads.
    pub fn admit(&self, request: GenerateRequest) -> Result<Request, ServiceError> {
        validate::generate(&request)?;
        self.check_model(&request.model)?;
        refuse_unsupported(&request)?;
        let tenant = request.routing.as_ref().map(|routing| routing.tenant.as_str());
        let queue_key = QueueKey {
            priority: validate::priority(&request),
            tenant: tenant.unwrap_or_default().into(),
        };
        let wanted = request.sampling.unwrap_or_default();
        let num_sequences = self.num_sequences(&wanted)?;
        let adjustments = self.adjustments(&wanted)?;
        let mut stopping = self.stopping(request.stopping.unwrap_or_default())?;
        let prompt = self.tokens(request.input)?;
        // Whoever calls a worker directly is the tenant "".
        let routing = request.routing.unwrap_or_default();
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
            sampling: sampling(&wanted),
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
                let least = self.model.tokenizer.min_token_count(text.len());
                let size = || format!("{} bytes are at least {least} tokens", text.len());
                self.check_prompt("prompt", least, size)?;
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
        self.check_prompt(field, ids.len(), || format!("{} tokens", ids.len()))?;
        Ok(ids)
    }

    /// Refuses a prompt that leaves no token for a response.
    fn check_prompt(
        &self,
        field: &str,
        tokens: usize,
        size: impl Fn() -> String,
    ) -> Result<(), ServiceError> {
        let context = self.model.config.context_length;
        if tokens >= context {
            let (size, most) = (size(), context.saturating_sub(1));
            let reason = format!(
                "{size}; at most {most} tokens leave room for a response in a context of {context}"
            );
            return Err(ServiceError::invalid(field, reason));
        }
        if tokens >= self.room {
            return Err(self.exceeds(&format!("{field}: {}", size()), tokens + 1));
        }
        Ok(())
    }

    /// The model's context has room for `tokens`, and this worker's KV cache does not.
    fn exceeds(&self, what: &str, tokens: usize) -> ServiceError {
        let what = format!(
            "{what}: {tokens} tokens of KV cache are needed, and this worker has {} (--kv-cache-memory)",
            self.room
        );
        let needed_tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        ServiceError::ExceedsWorker { what, needed_tokens }
    }

    /// The limit on new tokens of a prompt of `prompt` tokens, decided once: by the first worker that accepts the
    /// request, whose decision `resume` carries to the next ones.
    fn max_tokens(
        &self,
        stopping: &Stopping,
        prompt: usize,
        resume: Option<&Resume>,
    ) -> Result<usize, ServiceError> {
        let context = self.model.config.context_length;
        let (left, least) = (context.saturating_sub(prompt), stopping.min_tokens);
        if least > left {
            let why = format!(
                "{least} is above {left}, what a prompt of {prompt} tokens leaves in a context of {context}"
            );
            return Err(ServiceError::invalid("stopping.min_tokens", why));
        }
        let decided = resume.map_or(0, |resume| resume.max_tokens as usize);
        let max_tokens = match stopping.max_tokens {
            _ if decided > 0 => decided,
            Some(wanted) => wanted.min(left),
            // What others would have room for is for the router to know.
            None => self.room.saturating_sub(prompt).max(least),
        };
        if max_tokens > left {
            let why = format!(
                "max_tokens {max_tokens} is above {left}, what a prompt of {prompt} leaves in a context of {context}"
            );
            return Err(resume::mismatch("max_tokens", &why));
        }
        if prompt + max_tokens > self.room {
            let what = format!("a prompt of {prompt} tokens and up to {max_tokens} new ones");
            return Err(self.exceeds(&what, prompt + max_tokens));
        }
        Ok(max_tokens)
    }

    /// Ids index the embedding, so every one is checked.
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

    /// All sequences of a request run in one batch.
    fn num_sequences(&self, wanted: &proto::Sampling) -> Result<NonZeroU32, ServiceError> {
        let count = wanted.num_sequences.and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
        let limit = self.max_num_seqs;
        if count.get() as usize <= limit {
            return Ok(count);
        }
        let what = format!(
            "sampling.num_sequences: {count} is above {limit}, what a batch of this worker holds (--max-num-seqs)"
        );
        Err(ServiceError::ExceedsWorker { what, needed_tokens: 0 })
    }

    fn adjustments(&self, wanted: &proto::Sampling) -> Result<Adjustments, ServiceError> {
        let mut bias: Vec<_> = wanted.logit_bias.iter().map(|(id, bias)| (*id, *bias)).collect();
        // The order of a map is chance, and an error should be the same each time.
        bias.sort_unstable_by_key(|(id, _)| *id);
        for (id, _) in &bias {
            self.check_token(|| format!("sampling.logit_bias[{id}]"), *id)?;
        }
        let default = Adjustments::default();
        Ok(Adjustments {
            bias,
            repetition_penalty: wanted.repetition_penalty.unwrap_or(default.repetition_penalty),
            frequency_penalty: wanted.frequency_penalty.unwrap_or(default.frequency_penalty),
            presence_penalty: wanted.presence_penalty.unwrap_or(default.presence_penalty),
        })
    }

    fn stopping(&self, wanted: proto::Stopping) -> Result<Stopping, ServiceError> {
        let mut stopping = Stopping {
            max_tokens: wanted.max_tokens.map(|n| n as usize),
            min_tokens: wanted.min_tokens.unwrap_or_default() as usize,
            ignore_eos: wanted.ignore_eos,
            include_stop: wanted.include_stop_in_output,
            ..Stopping::default()
        };
        for (i, condition) in wanted.conditions.into_iter().enumerate() {
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

fn logprobs(wanted: proto::ResponseOptions) -> Logprobs {
    Logprobs {
        output: wanted.output_logprobs,
        prompt: wanted.prompt_logprobs,
        top: wanted.top_candidates as usize,
    }
}

/// Fields of the contract that this version cannot serve are refused, never ignored.
fn refuse_unsupported(request: &GenerateRequest) -> Result<(), ServiceError> {
    let used = [("guided", request.guided.as_ref().is_some_and(|g| g.form.is_some()))];
    match used.into_iter().find(|(_, used)| *used) {
        Some((field, _)) => Err(ServiceError::Unsupported(field.into())),
        None => Ok(()),
    }
}

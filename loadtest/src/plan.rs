//! The requests: each is a function of the plan and its index, so that all passes and runs send the
//! same.

use std::{num::NonZeroU32, sync::Arc};

use stoker_proto::v1::{GenerateRequest, Sampling, Stopping, generate_request::Input};
use stoker_shared::client::Client;

use crate::{
    cli::Cli,
    error::Error,
    prompts::Prompt,
    synthetic::{SyntheticShape, Vocabulary},
    trace::Trace,
};

/// The requests of a load test.
#[derive(Debug, Clone)]
pub struct Plan {
    source: PromptSource,
    model: String,
    temperature: Option<f32>,
    seed: u64,
}

#[derive(Debug, Clone)]
enum PromptSource {
    Listed { prompts: Vec<Prompt>, max_tokens: Option<NonZeroU32>, ignore_eos: bool },
    Synthetic { shape: SyntheticShape, vocabulary: Vocabulary },
    Traced { trace: Arc<Trace>, vocabulary: Vocabulary },
}

impl Plan {
    /// Creates a plan that uses `prompts` cyclically, which must not be empty, or synthetic prompts
    /// of words that the cluster's tokenizer determines, with the lengths of `trace` if there is one.
    pub async fn new(
        cli: &Cli,
        prompts: Option<Vec<Prompt>>,
        trace: Option<Arc<Trace>>,
        client: &Client,
    ) -> Result<Self, Error> {
        let request = &cli.request;
        let model = cli.cluster.model.clone();
        let source = match (prompts, trace) {
            (Some(prompts), _) => PromptSource::Listed {
                prompts,
                max_tokens: request.max_tokens,
                ignore_eos: request.ignore_eos,
            },
            (None, Some(trace)) => {
                PromptSource::Traced { trace, vocabulary: Vocabulary::of(client, &model).await? }
            }
            (None, None) => {
                let vocabulary = Vocabulary::of(client, &model).await?;
                vocabulary.check(&request.synthetic)?;
                PromptSource::Synthetic { shape: request.synthetic, vocabulary }
            }
        };
        Ok(Self { source, model, temperature: request.temperature, seed: request.seed })
    }

    /// Returns a plan of other requests of the same kind, for a warm-up.
    pub fn of_warm_up(&self) -> Self {
        Self { seed: !self.seed, ..self.clone() }
    }

    /// Returns the request with this index, from 0.
    pub fn request(&self, index: u64) -> GenerateRequest {
        let (prompt, max_tokens, ignore_eos) = match &self.source {
            PromptSource::Listed { prompts, max_tokens, ignore_eos } => {
                let prompt = &prompts[(index % prompts.len() as u64) as usize];
                let max_tokens = prompt.max_tokens.or(*max_tokens);
                (prompt.text.clone(), max_tokens.map(NonZeroU32::get), *ignore_eos)
            }
            PromptSource::Traced { trace, vocabulary } => {
                let request = &trace.requests[(index % trace.requests.len() as u64) as usize];
                let prompt = vocabulary.traced(request, trace.hashed_tokens, self.seed, index);
                (prompt, Some(request.output), true)
            }
            PromptSource::Synthetic { shape, vocabulary } => {
                let (prompt, tokens) = vocabulary.request(shape, self.seed, index);
                (prompt, Some(tokens), true)
            }
        };
        GenerateRequest {
            model: self.model.clone(),
            input: Some(Input::Prompt(prompt)),
            sampling: Some(Sampling {
                temperature: self.temperature,
                seed: Some(self.seed_of(index)),
                ..Sampling::default()
            }),
            stopping: Some(Stopping { max_tokens, ignore_eos, ..Stopping::default() }),
            ..GenerateRequest::default()
        }
    }

    /// Returns the seed of the request with this index.
    pub fn seed_of(&self, index: u64) -> u64 {
        self.seed.wrapping_add(index)
    }
}

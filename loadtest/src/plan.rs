//! What is sent: every request is a function of the plan and of its number, in every pass and every run.

use std::num::NonZeroU32;

use stoker_proto::v1::{GenerateRequest, Sampling, Stopping, generate_request::Input};
use stoker_shared::client::Client;

use crate::{
    cli::Cli,
    error::Error,
    prompts::Prompt,
    synthetic::{Shape, Words},
};

/// The requests of a load test.
#[derive(Debug, Clone)]
pub struct Plan {
    source: Source,
    model: String,
    temperature: Option<f32>,
    seed: u64,
}

#[derive(Debug, Clone)]
enum Source {
    Listed { prompts: Vec<Prompt>, max_tokens: Option<NonZeroU32>, ignore_eos: bool },
    Synthetic { shape: Shape, words: Words },
}

impl Plan {
    /// Takes turns on `prompts`, of which there is at least one; or asks the cluster what synthetic ones can
    /// be made of.
    pub async fn new(
        cli: &Cli,
        prompts: Option<Vec<Prompt>>,
        client: &Client,
    ) -> Result<Self, Error> {
        let request = &cli.request;
        let model = cli.cluster.model.clone();
        let source = match prompts {
            Some(prompts) => Source::Listed {
                prompts,
                max_tokens: request.max_tokens,
                ignore_eos: request.ignore_eos,
            },
            None => {
                let words = Words::of(client, &model).await?;
                words.check(&request.synthetic)?;
                Source::Synthetic { shape: request.synthetic, words }
            }
        };
        Ok(Self { source, model, temperature: request.temperature, seed: request.seed })
    }

    /// Request number `index`, from 0.
    pub fn request(&self, index: u64) -> GenerateRequest {
        let (prompt, max_tokens, ignore_eos) = match &self.source {
            Source::Listed { prompts, max_tokens, ignore_eos } => {
                let prompt = &prompts[(index % prompts.len() as u64) as usize];
                let max_tokens = prompt.max_tokens.or(*max_tokens);
                (prompt.text.clone(), max_tokens.map(NonZeroU32::get), *ignore_eos)
            }
            Source::Synthetic { shape, words } => {
                let (prompt, tokens) = words.request(shape, self.seed, index);
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

    /// What request `index` is sampled with.
    pub fn seed_of(&self, index: u64) -> u64 {
        self.seed.wrapping_add(index)
    }
}

//! The requests of a load test by their index.

use std::{
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
};

use crate::{
    error::Error,
    requests::{
        cancellation::Cancellation,
        prompts::Prompt,
        shape::{SharedPrefix, SyntheticShape},
        trace::Trace,
        vocabulary::Vocabulary,
    },
    targets::{Target, request::LoadRequest},
};

/// Length of a response from which a random cancellation is drawn where no maximum is known.
const CANCEL_WITHIN: u32 = 128;

/// The requests of a load test.
#[derive(Debug, Clone)]
pub struct Plan {
    source: PromptSource,
    model: String,
    temperature: Option<f32>,
    seed: u64,
    turns: NonZeroU64,
    cancellation: Option<Cancellation>,
}

#[derive(Debug, Clone)]
enum PromptSource {
    Listed { prompts: Vec<Prompt>, max_tokens: Option<NonZeroU32>, ignore_eos: bool },
    Synthetic { shape: SyntheticShape, prefix: Option<SharedPrefix>, vocabulary: Vocabulary },
    Traced { trace: Arc<Trace>, vocabulary: Vocabulary },
}

/// What a plan consists of.
#[derive(Debug, Clone)]
pub struct PlanConfig {
    /// Prompts that are used cyclically. Not empty.
    pub prompts: Option<Vec<Prompt>>,
    /// Maximum number of new tokens for them.
    pub max_tokens: Option<NonZeroU32>,
    /// Whether their responses continue after an end-of-text token.
    pub ignore_eos: bool,
    /// A trace, whose lengths synthetic prompts have.
    pub trace: Option<Arc<Trace>>,
    /// Lengths of synthetic prompts and responses where there is no trace.
    pub shape: SyntheticShape,
    /// What these prompts have in common.
    pub prefix: Option<SharedPrefix>,
    /// Number of requests of a conversation.
    pub turns: NonZeroU64,
    /// Sampling temperature.
    pub temperature: Option<f32>,
    /// Seed of the first request.
    pub seed: u64,
    /// Which requests the client cancels.
    pub cancellation: Option<Cancellation>,
}

impl Plan {
    /// Creates a plan of requests to `target`, whose tokenizer determines the words of synthetic
    /// prompts.
    pub async fn new(config: PlanConfig, target: &Target) -> Result<Self, Error> {
        let PlanConfig { prompts, max_tokens, ignore_eos, trace, shape, prefix, .. } = config;
        let source = match (prompts, trace) {
            (Some(prompts), _) => PromptSource::Listed { prompts, max_tokens, ignore_eos },
            (None, Some(trace)) => {
                PromptSource::Traced { trace, vocabulary: Vocabulary::of(target).await? }
            }
            (None, None) => {
                let vocabulary = Vocabulary::of(target).await?;
                vocabulary.check(&shape)?;
                PromptSource::Synthetic { shape, prefix, vocabulary }
            }
        };
        Ok(Self {
            source,
            model: target.model().to_owned(),
            temperature: config.temperature,
            seed: config.seed,
            turns: config.turns,
            cancellation: config.cancellation,
        })
    }

    /// Returns a plan of other requests of the same kind, for a warm-up or a repetition.
    pub fn with_seed(&self, seed: u64) -> Self {
        Self { seed, ..self.clone() }
    }

    /// Returns the seed of the first request.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns the number of requests of a conversation. Their indices are consecutive.
    pub fn turns(&self) -> u64 {
        self.turns.get()
    }

    /// Returns the request with this index, from 0, without the history of its conversation.
    pub fn request(&self, index: u64) -> LoadRequest {
        let (prompt, max_tokens, ignore_eos) = match &self.source {
            PromptSource::Listed { prompts, max_tokens, ignore_eos } => {
                let prompt = &prompts[(index % prompts.len() as u64) as usize];
                let max_tokens = prompt.max_tokens.or(*max_tokens);
                let first = index.is_multiple_of(self.turns());
                let text = if first { prompt.text.clone() } else { format!("\n{}", prompt.text) };
                (text, max_tokens.map(NonZeroU32::get), *ignore_eos)
            }
            PromptSource::Traced { trace, vocabulary } => {
                let request = &trace.requests[(index % trace.requests.len() as u64) as usize];
                let prompt = vocabulary.traced(request, trace.hashed_tokens, self.seed, index);
                (prompt, Some(request.output), true)
            }
            PromptSource::Synthetic { shape, prefix, vocabulary } => {
                let (prompt, tokens) = if index.is_multiple_of(self.turns()) {
                    vocabulary.request(shape, *prefix, self.seed, index)
                } else {
                    vocabulary.turn(shape, self.seed, index)
                };
                (prompt, Some(tokens), true)
            }
        };
        let cancel = |cancel: Cancellation| {
            cancel.after(self.seed, index, max_tokens.unwrap_or(CANCEL_WITHIN))
        };
        LoadRequest {
            index,
            model: self.model.clone(),
            history: Vec::new(),
            prompt,
            max_tokens,
            ignore_eos,
            temperature: self.temperature,
            seed: self.seed_of(index),
            cancel_after: self.cancellation.and_then(cancel),
        }
    }

    /// Returns the seed of the request with this index.
    pub fn seed_of(&self, index: u64) -> u64 {
        self.seed.wrapping_add(index)
    }
}

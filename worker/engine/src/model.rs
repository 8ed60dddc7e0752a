//! The model: a decoder with weights, its tokenizer, and the digest that names the two.

mod attention;
mod decoder;
mod digest;
mod layer;
mod linear;
mod mlp;
mod norm;
mod progress;
mod quantization;
mod reader;
mod rope;

use std::{sync::Arc, time::Instant};

pub use decoder::Decoder;
pub use progress::ProgressCounter;
pub use quantization::Quantization;
pub use reader::LoadTimings;
use reader::Reader;
use stoker_ops::{Device, graph};

use crate::{
    simulate::Profile,
    tokenizer::Tokenizer,
    weights::{ModelConfig, ModelFiles, WeightsError},
};

/// What turns tokens into logits.
#[derive(Clone)]
pub enum Network {
    /// Weights on a device.
    Decoder(Box<Decoder>, Device),
    /// A device that takes its time and needs no weights.
    Simulated(Profile),
}

impl Network {
    /// The device, if there is a real one.
    pub fn device(&self) -> Option<&Device> {
        match self {
            Self::Decoder(_, device) => Some(device),
            Self::Simulated(_) => None,
        }
    }

    /// The kind of device, as the digest and `GetModelInfo` name it.
    pub fn device_class(&self) -> &str {
        match self {
            Self::Decoder(_, device) => &device.class,
            Self::Simulated(_) => "simulated",
        }
    }
}

/// A loaded model. Its tensors are shared: an engine that clones it copies nothing.
#[derive(Clone)]
pub struct Model {
    /// The network.
    pub network: Network,
    /// Its shape and constants.
    pub config: ModelConfig,
    /// How its weights are kept.
    pub quantization: Quantization,
    /// Its vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// How its conversations are written, as a Jinja template, where the model has one.
    pub chat_template: Option<String>,
    /// What makes two workers interchangeable, in hexadecimal.
    pub digest: String,
    /// Number of weights; a tied head counts once.
    pub parameters: u64,
    /// Where the time of loading went.
    pub load_timings: LoadTimings,
    /// Beats while it computes.
    pub progress: ProgressCounter,
    /// A smaller one that guesses its tokens ahead, where there is one.
    pub draft: Option<Box<Self>>,
}

/// How far loading is: bytes of weights as files hold them.
#[derive(Debug, Clone, Copy)]
pub struct LoadProgress {
    /// Loaded so far.
    pub done: u64,
    /// To load in all.
    pub total: u64,
}

impl Model {
    /// Reads every tensor of `files` onto `device`, one at a time, and reports after each.
    pub fn load(
        files: &ModelFiles,
        device: &Device,
        quantization: Quantization,
        mut report: impl FnMut(LoadProgress),
    ) -> Result<Self, WeightsError> {
        let parameters =
            files.tensors().map(|info| info.shape.iter().product::<usize>() as u64).sum();
        let total = files.tensors().map(|info| files.stored_bytes(&info.name)).sum();
        let begun = Instant::now();
        let _using = graph::using();
        let mut reader = Reader {
            files,
            device: &device.tensors,
            quantization,
            digest: digest::Digest::new(files, &device.class, quantization),
            timings: LoadTimings::default(),
            progress: LoadProgress { done: 0, total },
            report: &mut report,
        };
        let decoder = Decoder::read(files.config(), &mut reader)?;
        let load_timings = LoadTimings { total: begun.elapsed(), ..reader.timings };
        let progress = decoder.progress.clone();
        Ok(Self {
            network: Network::Decoder(Box::new(decoder), device.clone()),
            config: files.config().clone(),
            quantization,
            tokenizer: Arc::clone(files.tokenizer()),
            chat_template: files.chat_template().map(str::to_owned),
            digest: reader.digest.finish(),
            parameters,
            load_timings,
            progress,
            draft: None,
        })
    }

    /// The family as `GetModelInfo` names it, for instance `LlamaForCausalLM`.
    pub fn architecture(&self) -> &str {
        match &self.network {
            Network::Decoder(..) => self.config.family.architecture(),
            Network::Simulated(_) => "Simulated",
        }
    }

    /// A model of `profile` that speaks the vocabulary of `tokenizer`, which requests end with `eos`.
    pub fn simulated(profile: Profile, tokenizer: Tokenizer, eos: u32) -> Self {
        let vocab_size = tokenizer.vocab_size();
        let config = profile.config(vocab_size, eos);
        let tokenizer = tokenizer.for_model(vocab_size, &config.eos_token_ids);
        Self {
            digest: digest::simulated(&profile, &tokenizer),
            network: Network::Simulated(profile),
            config,
            quantization: Quantization::None,
            tokenizer: Arc::new(tokenizer),
            chat_template: None,
            parameters: 0,
            load_timings: LoadTimings::default(),
            progress: ProgressCounter::default(),
            draft: None,
        }
    }
}

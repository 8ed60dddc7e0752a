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
mod simulated;

use std::{sync::Arc, time::Instant};

pub use decoder::Decoder;
pub use progress::ProgressCounter;
pub use quantization::{MatrixFormat, Quantization};
pub use reader::LoadTimings;
use reader::Reader;
use stoker_chat_template::ChatTemplates;
use stoker_ops::{Device, graph};

use crate::{
    profile::Profile,
    tokenizer::Tokenizer,
    weights::{ModelConfig, ModelFiles, WeightsError},
};

/// Computes logits from tokens.
#[derive(Clone)]
pub enum Network {
    /// Weights on a device.
    Decoder(Box<Decoder>, Device),
    /// A simulated device, which waits for the time of a step and needs no weights.
    Simulated(Profile),
}

impl Network {
    /// Returns the device that computes, or `None` for a simulated one.
    pub fn device(&self) -> Option<&Device> {
        match self {
            Self::Decoder(_, device) => Some(device),
            Self::Simulated(_) => None,
        }
    }

    /// Returns the device class, as the digest and `GetModelInfo` name it.
    pub fn device_class(&self) -> &str {
        match self {
            Self::Decoder(_, device) => &device.class,
            Self::Simulated(_) => "simulated",
        }
    }
}

/// A loaded model. Clones share its tensors.
#[derive(Clone)]
pub struct Model {
    /// The network.
    pub network: Network,
    /// Shape and constants.
    pub config: ModelConfig,
    /// Format in which weights are stored and multiplied.
    pub quantization: Quantization,
    /// Tokenizer with the model's vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// Chat templates in Jinja.
    pub chat_templates: ChatTemplates,
    /// Digest in hexadecimal. Workers with equal digests are interchangeable.
    pub digest: String,
    /// Number of weights; a tied head counts once.
    pub parameters: u64,
    /// Time that each stage of loading took.
    pub load_timings: LoadTimings,
    /// Counts units of work within steps.
    pub progress: ProgressCounter,
    /// Smaller draft model for speculative decoding, if there is one.
    pub draft: Option<Box<Self>>,
}

/// Progress of loading, in bytes of weights as stored in files.
#[derive(Debug, Clone, Copy)]
pub struct LoadProgress {
    /// Bytes loaded so far.
    pub done: u64,
    /// Bytes to load in total.
    pub total: u64,
}

impl Model {
    /// Reads every tensor of `files` onto `device`, one at a time, and calls `report` after each.
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
        let _access = graph::shared_access();
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
            chat_templates: files.chat_templates().clone(),
            digest: reader.digest.finish(),
            parameters,
            load_timings,
            progress,
            draft: None,
        })
    }

    /// Returns the architecture as `GetModelInfo` names it, for instance `LlamaForCausalLM`.
    pub fn architecture(&self) -> &str {
        match &self.network {
            Network::Decoder(..) => self.config.family.architecture(),
            Network::Simulated(_) => "Simulated",
        }
    }
}

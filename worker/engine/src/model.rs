//! The model: a decoder with weights, its tokenizer, and the digest that names the two.

mod attention;
mod decoder;
mod digest;
mod layer;
mod linear;
mod mlp;
mod norm;
mod quantization;
mod rope;

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
pub use decoder::Decoder;
pub use quantization::Quantization;

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
    /// The kind of device, as the digest and `GetModelInfo` name it.
    pub fn device_class(&self) -> &'static str {
        match self {
            Self::Decoder(..) => "cpu",
            Self::Simulated(_) => "simulated",
        }
    }
}

/// The device that every machine has.
pub fn cpu() -> Device {
    Device::flex()
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
}

/// How far loading is: bytes of f32 weights.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
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
        mut report: impl FnMut(Progress),
    ) -> Result<Self, WeightsError> {
        let parameters =
            files.tensors().map(|info| info.shape.iter().product::<usize>() as u64).sum();
        let mut reader = Reader {
            files,
            device,
            digest: digest::Digest::new(files, quantization),
            progress: Progress { done: 0, total: parameters * size_of::<f32>() as u64 },
            report: &mut report,
        };
        let decoder = Decoder::read(files.config(), &mut reader)?;
        Ok(Self {
            network: Network::Decoder(Box::new(decoder), device.clone()),
            config: files.config().clone(),
            quantization,
            tokenizer: Arc::clone(files.tokenizer()),
            chat_template: files.chat_template().map(str::to_owned),
            digest: reader.digest.finish(),
            parameters,
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
        }
    }
}

/// Hands tensors to the modules as they ask for them by name.
struct Reader<'a> {
    files: &'a ModelFiles,
    device: &'a Device,
    digest: digest::Digest,
    progress: Progress,
    report: &'a mut dyn FnMut(Progress),
}

impl Reader<'_> {
    /// Reads `name`, which the file's check has found to have this shape.
    fn tensor<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Tensor<D>, WeightsError> {
        let values = self.files.read_f32(name)?;
        self.digest.tensor(name, &values);
        self.progress.done += (values.len() * size_of::<f32>()) as u64;
        (self.report)(self.progress);
        Ok(Tensor::from_data(TensorData::new(values, shape), self.device))
    }
}

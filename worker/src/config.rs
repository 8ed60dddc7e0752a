//! What an operator can set, checked before anything is loaded.

mod speculation;

use std::time::Duration;

use bytesize::ByteSize;
use clap::{
    Args, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};
use stoker_engine::{EngineConfig, model::Quantization, weights::ModelConfig};
use stoker_ops::{KV_BLOCK, device::DeviceChoice, fallback::GpuFeature};
use stoker_shared::{duration, serve::LimitsConfig};

pub use speculation::{Drafter, SpeculationConfig};

pub use crate::routing::AcceptRouting;

/// Where a model computes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct DeviceConfig {
    /// Where to compute: `auto` (the GPU that works, else the CPU), `cpu`, `cuda` or `cuda:N` (NVIDIA's GPU
    /// number N), `wgpu` (what Vulkan, Metal or DirectX reach)
    #[arg(
        long,
        env = "STOKER_DEVICE",
        default_value_t = DeviceChoice::default(),
        value_name = "DEVICE",
        help_heading = "Model"
    )]
    pub device: DeviceChoice,

    /// Parts of a GPU to do without: `tensor-cores`, `graphs` (steps launched as one). A part that does not
    /// work is found out and left alone without being named here
    #[arg(
        long,
        env = "STOKER_DISABLE_GPU_FEATURE",
        value_delimiter = ',',
        value_name = "PARTS",
        help_heading = "Model"
    )]
    pub disable_gpu_feature: Vec<GpuFeature>,
}

/// How a model computes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct ComputeConfig {
    /// Where it does.
    #[command(flatten)]
    pub device: DeviceConfig,

    /// How weights are kept and multiplied: in 8 bits with a scale for each output, or in f32
    #[arg(
        long,
        env = "STOKER_QUANTIZE",
        default_value_t = Quantization::default(),
        value_parser = quantization(),
        value_name = "KIND",
        help_heading = "Model"
    )]
    pub quantize: Quantization,

    /// Threads to compute with on the CPU [default: as many as this process may use, by affinity and cgroup]
    #[arg(
        long,
        env = "STOKER_THREADS",
        value_parser = clap::value_parser!(u16).range(1..=1024),
        value_name = "COUNT",
        help_heading = "Model"
    )]
    pub threads: Option<u16>,

    /// Who guesses tokens ahead.
    #[command(flatten)]
    pub speculation: SpeculationConfig,

    /// Say on standard error where the time of loading went
    #[arg(long, env = "STOKER_LOAD_TIMINGS", help_heading = "Model")]
    pub load_timings: bool,
}

/// How a worker works.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct WorkerConfig {
    /// How its model computes.
    #[command(flatten)]
    pub compute: ComputeConfig,

    /// Longest prompt and response together, in tokens; only workers with the same limit take over each other's
    /// responses [default: the model's context]
    #[arg(
        long,
        env = "STOKER_MAX_MODEL_LEN",
        value_parser = clap::value_parser!(u32).range(2..=1 << 24),
        value_name = "TOKENS",
        help_heading = "Scheduling"
    )]
    pub max_model_len: Option<u32>,

    /// Sequences in one batch
    #[arg(
        long,
        env = "STOKER_MAX_NUM_SEQS",
        default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=4096),
        value_name = "COUNT",
        help_heading = "Scheduling"
    )]
    pub max_num_seqs: u32,

    /// Tokens in one step, at least --max-num-seqs; long prompts are computed in chunks of it
    #[arg(
        long,
        env = "STOKER_MAX_NUM_BATCHED_TOKENS",
        default_value_t = 512,
        value_parser = clap::value_parser!(u32).range(1..=1_048_576),
        value_name = "TOKENS",
        help_heading = "Scheduling"
    )]
    pub max_num_batched_tokens: u32,

    /// While some sequences decode, prompts are computed in chunks so short that a step takes at most so many times what
    /// it would without them, as far as steps can tell; at least 1. More makes long prompts faster, and those who read
    /// wait longer for each token
    #[arg(
        long,
        env = "STOKER_MAX_DECODE_SLOWDOWN",
        default_value_t = MAX_DECODE_SLOWDOWN,
        value_parser = slowdown,
        value_name = "FACTOR",
        help_heading = "Scheduling"
    )]
    pub max_decode_slowdown: f64,

    /// Requests that may wait beside --max-num-seqs that run; more are refused with RESOURCE_EXHAUSTED. One of several
    /// sequences counts as that many
    #[arg(
        long,
        env = "STOKER_MAX_NUM_QUEUED_REQS",
        default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(..=1_048_576),
        value_name = "COUNT",
        help_heading = "Scheduling"
    )]
    pub max_num_queued_reqs: u32,

    /// Tokens of all prompts that wait, at most; more are refused with RESOURCE_EXHAUSTED, unless no other waits
    /// [default: 8 times what the KV cache holds, and at least one context]
    #[arg(
        long,
        env = "STOKER_MAX_NUM_QUEUED_TOKENS",
        value_parser = clap::value_parser!(u64).range(1..=1 << 40),
        value_name = "TOKENS",
        help_heading = "Scheduling"
    )]
    pub max_num_queued_tokens: Option<u64>,

    /// Memory for keys and values, at most, a draft model's too; what --max-num-seqs full contexts need is enough
    #[arg(
        long,
        env = "STOKER_KV_CACHE_MEMORY",
        default_value = "1GiB",
        value_name = "SIZE",
        help_heading = "Scheduling"
    )]
    pub kv_cache_memory: ByteSize,

    /// Whether a prompt need not be computed as far as another of the same tenant and salt began like it: what is
    /// computed stays in --kv-cache-memory until that is needed otherwise
    #[arg(
        long,
        env = "STOKER_PREFIX_CACHE",
        value_enum,
        default_value_t,
        value_name = "SWITCH",
        help_heading = "Scheduling"
    )]
    pub prefix_cache: Switch,

    /// Whose `routing` is accepted: what a router says of a request's tenant, attempts and tokens so far. `any` is right
    /// where only routers reach this worker; all others are refused with PERMISSION_DENIED
    #[arg(
        long,
        env = "STOKER_ACCEPT_ROUTING",
        value_enum,
        default_value_t,
        value_name = "PEERS",
        help_heading = "Limits"
    )]
    pub accept_routing: AcceptRouting,

    /// What clients may hold open.
    #[command(flatten)]
    pub limits: LimitsConfig,

    /// How long running streams may go on after SIGTERM or Ctrl-C
    #[arg(
        long,
        env = "STOKER_DRAIN_TIMEOUT",
        default_value = "30s",
        value_parser = duration::parse,
        value_name = "TIME",
        help_heading = "Shutdown"
    )]
    pub drain_timeout: Duration,
}

/// Something that is done, or not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Do it
    #[default]
    On,
    /// Do without
    Off,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            compute: ComputeConfig::default(),
            max_model_len: None,
            max_num_seqs: 64,
            max_num_batched_tokens: 512,
            max_decode_slowdown: MAX_DECODE_SLOWDOWN,
            max_num_queued_reqs: 1024,
            max_num_queued_tokens: None,
            kv_cache_memory: ByteSize::gib(1),
            prefix_cache: Switch::On,
            accept_routing: AcceptRouting::default(),
            limits: LimitsConfig::default(),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// Reads the name of a kind, and lists those that there are.
pub(crate) fn quantization() -> impl TypedValueParser<Value = Quantization> {
    PossibleValuesParser::new(Quantization::ALL.map(Quantization::name))
        .try_map(|name| name.parse::<Quantization>())
}

/// A setting that does not fit another, or the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not all sequences of a batch could decode in one step.
    #[error(
        "--max-num-batched-tokens {tokens} is below --max-num-seqs {seqs}; raise it or lower the other"
    )]
    FewTokens {
        /// Tokens in a step.
        tokens: u32,
        /// Sequences in a batch.
        seqs: u32,
    },
    /// More than the model was made for.
    #[error(
        "--max-model-len {given} is above {context}, the context of the model; lower it or leave it out"
    )]
    LongContext {
        /// What was asked for.
        given: u32,
        /// What the model has.
        context: usize,
    },
    /// A model is to guess, and nobody says which.
    #[error(
        "--speculate draft wants --draft-model PATH, a smaller model with the same vocabulary; or take --speculate ngram, \
         which needs none"
    )]
    NoDraft,
    /// A device that is not there has no use for a model.
    #[error("--speculate draft cannot guess what --simulate makes up; take --speculate ngram")]
    SimulatedDraft,
    /// A model is named that is to do nothing.
    #[error("--draft-model is of no use without --speculate draft; add that, or leave it out")]
    UnusedDraft,
    /// Not one block fits.
    #[error(
        "--kv-cache-memory {given} is less than one block of {} tokens, {block}; give more",
        KV_BLOCK
    )]
    NoBlock {
        /// What was asked for.
        given: ByteSize,
        /// What a block of this model takes.
        block: ByteSize,
    },
}

impl WorkerConfig {
    /// The context of a model that has `context` tokens by itself.
    pub fn context(&self, context: usize) -> Result<usize, ConfigError> {
        match self.max_model_len {
            Some(given) if given as usize > context => {
                Err(ConfigError::LongContext { given, context })
            }
            Some(given) => Ok(given as usize),
            None => Ok(context),
        }
    }

    /// Tokens of prompts that may wait for `engine`, whose model has a context of `context` tokens.
    pub fn queued_tokens(&self, engine: &EngineConfig, context: usize) -> usize {
        let cached = engine.kv_blocks.saturating_mul(KV_BLOCK);
        let default = cached.saturating_mul(QUEUED_TOKENS_PER_CACHED).max(context);
        self.max_num_queued_tokens.map_or(default, |n| usize::try_from(n).unwrap_or(usize::MAX))
    }

    /// The size of an engine for a model of shape `model` whose weights are kept like this. A `draft` has as many blocks
    /// as the model, in the same memory.
    pub fn engine(
        &self,
        model: &ModelConfig,
        draft: Option<&ModelConfig>,
        quantization: Quantization,
    ) -> Result<EngineConfig, ConfigError> {
        let (tokens, seqs) = (self.max_num_batched_tokens, self.max_num_seqs);
        if tokens < seqs {
            return Err(ConfigError::FewTokens { tokens, seqs });
        }
        let block = |model| EngineConfig::block_bytes(model, quantization);
        let (own, draft) = (block(model), draft.map_or(0, block));
        let bytes = u128::from(self.kv_cache_memory.as_u64());
        let bytes = (bytes * u128::from(own) / u128::from((own + draft).max(1))) as u64;
        let kv_blocks = EngineConfig::blocks_within(bytes, seqs as usize, model, quantization);
        if kv_blocks == 0 {
            let block = ByteSize::b(own + draft);
            return Err(ConfigError::NoBlock { given: self.kv_cache_memory, block });
        }
        Ok(EngineConfig {
            max_num_seqs: seqs as usize,
            max_num_batched_tokens: tokens as usize,
            kv_blocks,
            prefix_cache: self.prefix_cache == Switch::On,
            max_decode_slowdown: self.max_decode_slowdown,
        })
    }
}

/// Prompt tokens that may wait for each one that the KV cache holds, if nobody says otherwise.
const QUEUED_TOKENS_PER_CACHED: usize = 8;

/// What steps may take while a prompt is computed, if nobody says otherwise.
pub(crate) const MAX_DECODE_SLOWDOWN: f64 = 2.0;

/// Reads a factor of at least 1.
pub(crate) fn slowdown(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if (1.0..=1e6).contains(&factor) => Ok(factor),
        _ => {
            Err("write a number from 1, which is least slowdown, to 1000000, for instance 2".into())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        worker: WorkerConfig,
    }

    #[test]
    fn the_defaults_of_flags_and_code_agree() {
        let parsed = Cli::try_parse_from(["worker"]).map(|cli| cli.worker);
        assert_eq!(parsed.ok(), Some(WorkerConfig::default()));
    }

    #[test]
    fn values_out_of_range_name_the_flag() {
        for (flag, value) in [
            ("--max-num-seqs", "0"),
            ("--max-num-batched-tokens", "none"),
            ("--kv-cache-memory", "much"),
            ("--prefix-cache", "some"),
            ("--max-decode-slowdown", "0.5"),
            ("--max-decode-slowdown", "NaN"),
            ("--drain-timeout", "1"),
            ("--device", "gpu"),
            ("--disable-gpu-feature", "fans"),
        ] {
            let error = Cli::try_parse_from(["worker", flag, value]).err().unwrap();
            let text = error.to_string();
            assert!(text.contains(flag) && text.contains(value), "{text}");
        }
    }
}

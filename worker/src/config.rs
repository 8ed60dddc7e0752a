//! The settings of an operator, validated before anything is loaded.

use std::{path::PathBuf, time::Duration};

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use stoker_engine::{EngineConfig, model::Quantization, weights::ModelConfig};
pub use stoker_loader::config::ComputeConfig;
use stoker_loader::config::{MAX_DECODE_SLOWDOWN, slowdown};
use stoker_ops::KV_BLOCK;
use stoker_shared::{config, duration, serve::LimitsConfig, tls::IdentityPattern};

pub use crate::routing::AcceptRouting;

/// The settings of a worker.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct WorkerConfig {
    /// How the model computes.
    #[command(flatten)]
    pub compute: ComputeConfig,

    /// Trace one in COUNT engine steps, each in a trace of its own and as a part of the requests in
    /// its batch; 0 traces none. Has no effect without a collector
    #[arg(
        long,
        env = "STOKER_TRACE_STEPS",
        default_value_t = 64,
        value_name = "COUNT",
        help_heading = "Telemetry"
    )]
    pub trace_steps: u64,

    /// Maximum length of prompt and response together, in tokens; only workers with the same limit
    /// resume each other's responses [default: the model's context]
    #[arg(
        long,
        env = "STOKER_MAX_MODEL_LEN",
        value_parser = clap::value_parser!(u32).range(2..=1 << 24),
        value_name = "TOKENS",
        help_heading = "Scheduling"
    )]
    pub max_model_len: Option<u32>,

    /// File with the chat template, in Jinja, instead of the model's own. Workers of one model need
    /// the same one, to resume each other's responses
    #[arg(long, env = "STOKER_CHAT_TEMPLATE", value_name = "FILE", help_heading = "Model")]
    pub chat_template: Option<PathBuf>,

    /// Maximum number of sequences in one batch
    #[arg(
        long,
        env = "STOKER_MAX_NUM_SEQS",
        default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=4096),
        value_name = "COUNT",
        help_heading = "Scheduling"
    )]
    pub max_num_seqs: u32,

    /// Maximum number of tokens in one step, at least --max-num-seqs; longer prompts are computed
    /// in chunks
    #[arg(
        long,
        env = "STOKER_MAX_NUM_BATCHED_TOKENS",
        default_value_t = 512,
        value_parser = clap::value_parser!(u32).range(1..=1_048_576),
        value_name = "TOKENS",
        help_heading = "Scheduling"
    )]
    pub max_num_batched_tokens: u32,

    /// Limits prefill chunks so that a step takes at most FACTOR times a decode-only step, as
    /// estimated from measured steps; at least 1. A higher factor favours time to first token over
    /// inter-token latency
    #[arg(
        long,
        env = "STOKER_MAX_DECODE_SLOWDOWN",
        default_value_t = MAX_DECODE_SLOWDOWN,
        value_parser = slowdown,
        value_name = "FACTOR",
        help_heading = "Scheduling"
    )]
    pub max_decode_slowdown: f64,

    /// Maximum number of waiting requests, in addition to --max-num-seqs running ones; more are
    /// rejected with RESOURCE_EXHAUSTED. A request of N sequences counts as N
    #[arg(
        long,
        env = "STOKER_MAX_NUM_QUEUED_REQS",
        default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(..=1_048_576),
        value_name = "COUNT",
        help_heading = "Scheduling"
    )]
    pub max_num_queued_reqs: u32,

    /// Maximum number of tokens in all waiting prompts; more are rejected with RESOURCE_EXHAUSTED,
    /// unless no other request waits [default: 8 times the KV cache, and at least one context]
    #[arg(
        long,
        env = "STOKER_MAX_NUM_QUEUED_TOKENS",
        value_parser = clap::value_parser!(u64).range(1..=1 << 40),
        value_name = "TOKENS",
        help_heading = "Scheduling"
    )]
    pub max_num_queued_tokens: Option<u64>,

    /// Maximum memory for keys and values, a draft model's included; no more is allocated than
    /// --max-num-seqs full contexts need
    #[arg(
        long,
        env = "STOKER_KV_CACHE_MEMORY",
        default_value = "1GiB",
        value_name = "SIZE",
        help_heading = "Scheduling"
    )]
    pub kv_cache_memory: ByteSize,

    /// Whether prompts reuse the cached keys and values of a common prefix of the same tenant and
    /// salt; they stay in --kv-cache-memory until their blocks are needed
    #[arg(
        long,
        env = "STOKER_PREFIX_CACHE",
        value_enum,
        default_value_t,
        value_name = "SWITCH",
        help_heading = "Scheduling"
    )]
    pub prefix_cache: Switch,

    /// Peers whose `routing` is accepted, beside those with a certificate (--tls-client-ca): the
    /// tenant, attempt and generated tokens that a router sends with a request. Use `any` only where nothing but routers reaches this worker; others
    /// are rejected with PERMISSION_DENIED
    #[arg(
        long,
        env = "STOKER_ACCEPT_ROUTING",
        value_enum,
        default_value_t,
        value_name = "PEERS",
        help_heading = "Limits"
    )]
    pub accept_routing: AcceptRouting,

    /// With --tls-client-ca: names of the certificates whose `routing` is accepted, in the syntax of
    /// --worker-identity of routers. Then no other peer's is [default: every certificate]
    #[arg(
        long,
        env = "STOKER_ROUTER_IDENTITY",
        value_delimiter = ',',
        value_name = "PATTERN",
        help_heading = "TLS"
    )]
    pub router_identity: Vec<IdentityPattern>,

    /// Limits on connections and streams.
    #[command(flatten)]
    pub limits: LimitsConfig,

    /// Time without progress of an engine that has sequences after which this worker is not ready;
    /// after three times as long, /livez says that a restart is due
    #[arg(
        long,
        env = "STOKER_ENGINE_STALL_TIMEOUT",
        default_value = "30s",
        value_parser = duration::parse,
        value_name = "TIME",
        help_heading = "Health"
    )]
    pub engine_stall_timeout: Duration,

    /// Time that running streams have to finish after SIGTERM or Ctrl-C
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

/// Whether a feature is enabled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Enabled
    #[default]
    On,
    /// Disabled
    Off,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        config::defaults()
    }
}

/// A setting that contradicts another one or the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The sequences of a full batch could not decode in one step.
    #[error(
        "--max-num-batched-tokens {tokens} is below --max-num-seqs {seqs}; raise the former or lower \
         the latter"
    )]
    FewTokens {
        /// Maximum tokens in a step.
        tokens: u32,
        /// Maximum sequences in a batch.
        seqs: u32,
    },
    /// A simulated model has a template of its own.
    #[error("--chat-template does not apply to --simulate; leave one of them out")]
    SimulatedTemplate,
    /// The requested context is longer than the model's.
    #[error(
        "--max-model-len {given} is above {context}, the context of the model; lower it or omit it"
    )]
    LongContext {
        /// The requested context, in tokens.
        given: u32,
        /// The model's context, in tokens.
        context: usize,
    },
    /// The memory is too small for one block.
    #[error(
        "--kv-cache-memory {given} is less than one block of {} tokens, {block}; give more",
        KV_BLOCK
    )]
    NoBlock {
        /// The requested memory.
        given: ByteSize,
        /// Size of a block of this model.
        block: ByteSize,
    },
}

impl WorkerConfig {
    /// Returns the context to serve of a model whose own context is `context` tokens.
    pub fn context(&self, context: usize) -> Result<usize, ConfigError> {
        match self.max_model_len {
            Some(given) if given as usize > context => {
                Err(ConfigError::LongContext { given, context })
            }
            Some(given) => Ok(given as usize),
            None => Ok(context),
        }
    }

    /// Returns the maximum number of waiting prompt tokens for `engine`, whose model has a context
    /// of `context` tokens.
    pub fn queued_tokens(&self, engine: &EngineConfig, context: usize) -> usize {
        let capacity = engine.kv_blocks.saturating_mul(KV_BLOCK);
        let default = capacity.saturating_mul(QUEUED_TOKENS_PER_CACHED).max(context);
        self.max_num_queued_tokens.map_or(default, |n| usize::try_from(n).unwrap_or(usize::MAX))
    }

    /// Returns the size of an engine for a model of shape `model` with weights in `quantization`. A
    /// `draft` gets the same number of blocks as the model, within the same memory.
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

/// Default of `--max-num-queued-tokens`, as a multiple of the tokens that the KV cache holds.
const QUEUED_TOKENS_PER_CACHED: usize = 8;

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
    fn every_flag_has_a_default() {
        assert_eq!(WorkerConfig::default().kv_cache_memory, ByteSize::gib(1));
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

//! How a model computes: its device, the format of its weights, its threads, speculative decoding.

mod speculation;

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use stoker_engine::model::Quantization;
use stoker_ops::{device::DeviceChoice, fallback::GpuFeature};

pub use speculation::{Drafter, SpeculationConfig, SpeculationError};

/// The device that computes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct DeviceConfig {
    /// Device: `auto` (a GPU that works, else the CPU), `cpu`, `cuda` or `cuda:N` (NVIDIA GPU
    /// number N), `wgpu` (a GPU through Vulkan, Metal or DirectX)
    #[arg(
        long,
        env = "STOKER_DEVICE",
        default_value_t = DeviceChoice::default(),
        value_name = "DEVICE",
        help_heading = "Model"
    )]
    pub device: DeviceChoice,

    /// GPU features to disable: `tensor-cores`, `graphs` (a step is one launch). A feature that
    /// does not work is detected and disabled without this flag
    #[arg(
        long,
        env = "STOKER_DISABLE_GPU_FEATURE",
        value_delimiter = ',',
        value_name = "FEATURES",
        help_heading = "Model"
    )]
    pub disable_gpu_feature: Vec<GpuFeature>,
}

/// How a model computes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct ComputeConfig {
    /// The device.
    #[command(flatten)]
    pub device: DeviceConfig,

    /// Format in which weights are stored and multiplied: 8 bits with a scale per output; 4 bits in
    /// layers, which on a CPU decodes faster and costs some quality (`eval`); or f32
    #[arg(
        long,
        env = "STOKER_QUANTIZE",
        default_value_t = Quantization::default(),
        value_parser = quantization(),
        value_name = "KIND",
        help_heading = "Model"
    )]
    pub quantize: Quantization,

    /// Threads that compute on the CPU [default: the CPUs that affinity and cgroup allow]
    #[arg(
        long,
        env = "STOKER_THREADS",
        value_parser = clap::value_parser!(u16).range(1..=1024),
        value_name = "COUNT",
        help_heading = "Model"
    )]
    pub threads: Option<u16>,

    /// Speculative decoding.
    #[command(flatten)]
    pub speculation: SpeculationConfig,

    /// Print on standard error how long each phase of loading took
    #[arg(long, env = "STOKER_LOAD_TIMINGS", help_heading = "Model")]
    pub load_timings: bool,
}

/// Returns a parser of a quantization's name, whose help lists all names.
pub fn quantization() -> impl TypedValueParser<Value = Quantization> {
    PossibleValuesParser::new(Quantization::ALL.map(Quantization::name))
        .try_map(|name| name.parse::<Quantization>())
}

/// Default of `--max-decode-slowdown`.
pub const MAX_DECODE_SLOWDOWN: f64 = 2.0;

/// Parses a factor of at least 1.
pub fn slowdown(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if (1.0..=1e6).contains(&factor) => Ok(factor),
        _ => Err("give a number from 1 (minimum slowdown) to 1000000, for instance 2".into()),
    }
}

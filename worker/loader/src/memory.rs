//! Checks that a model fits into memory before any of it is read.
//!
//! Otherwise the kernel would kill the process without an error message, possibly while it serves,
//! because memory of the KV cache is allocated only as the cache fills.

mod free;

use std::fmt;

use bytesize::ByteSize;
use stoker_engine::{EngineConfig, Footprint, model::Quantization, weights::ModelConfig};

pub use free::{FreeMemory, MemorySource};

/// Memory for everything except weights, keys and values (activations, logits, connections), as a
/// percentage of these.
const MARGIN_PERCENT: u64 = 5;

/// Memory that loading and serving a model takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRequirement {
    /// Format of the weights.
    pub quantization: Quantization,
    /// All weights, which workers in one process share.
    pub weights: u64,
    /// Keys and values of one worker with a full KV cache.
    pub kv_cache: u64,
    /// Number of workers in this process.
    pub workers: u16,
    /// Whether a draft model is included.
    pub draft: bool,
}

/// A model that does not fit into memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InsufficientMemory {
    name: String,
    required: MemoryRequirement,
    free: FreeMemory,
}

impl MemoryRequirement {
    /// Returns the requirement of `workers` workers with engines of size `engine` for a model of
    /// shape `model`.
    pub fn of(
        model: &ModelConfig,
        quantization: Quantization,
        engine: &EngineConfig,
        workers: u16,
    ) -> Self {
        let block = EngineConfig::block_bytes(model, quantization);
        Self {
            quantization,
            weights: Footprint::of(model, quantization).weight_bytes,
            kv_cache: (engine.kv_blocks as u64).saturating_mul(block),
            workers,
            draft: false,
        }
    }

    /// Adds the requirement of a draft model, whose KV cache has the same number of blocks.
    pub fn add_draft(&mut self, draft: Self) {
        self.weights = self.weights.saturating_add(draft.weights);
        self.kv_cache = self.kv_cache.saturating_add(draft.kv_cache);
        self.draft = true;
    }

    /// Returns an error if the model `name` needs more memory than is free. Passes if the free
    /// memory is unknown.
    pub fn check(self, name: &str, free: Option<FreeMemory>) -> Result<(), InsufficientMemory> {
        match free {
            Some(free) if self.total() > free.bytes => {
                Err(InsufficientMemory { name: name.to_owned(), required: self, free })
            }
            _ => Ok(()),
        }
    }

    /// Returns the total, including the margin.
    fn total(&self) -> u64 {
        let kv_caches = self.kv_cache.saturating_mul(u64::from(self.workers));
        let exact = u128::from(self.weights.saturating_add(kv_caches));
        u64::try_from(exact * u128::from(100 + MARGIN_PERCENT) / 100).unwrap_or(u64::MAX)
    }

    /// Returns the largest `--kv-cache-memory` that fits, in whole MiB.
    fn max_kv_cache_mib(&self, free: u64) -> u64 {
        let without_margin = u128::from(free) * 100 / u128::from(100 + MARGIN_PERCENT);
        let remaining = (without_margin as u64).saturating_sub(self.weights);
        (remaining / u64::from(self.workers.max(1))) >> 20
    }
}

impl std::error::Error for InsufficientMemory {}

impl fmt::Display for InsufficientMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, required, free } = self;
        let (weights, kv_cache) = (ByteSize::b(required.weights), ByteSize::b(required.kv_cache));
        let with = if required.draft { " with its draft" } else { "" };
        write!(
            f,
            "--model {name}{with} needs {weights} for weights ({}) and ",
            required.quantization
        )?;
        match required.workers {
            1 => write!(f, "{kv_cache} for keys and values")?,
            workers => write!(f, "{workers} x {kv_cache} for the keys and values of its workers")?,
        }
        let total = ByteSize::b(required.total());
        write!(
            f,
            " (--kv-cache-memory), {total} with a margin of {MARGIN_PERCENT} %, but {free}. "
        )?;
        // A GPU stores 4 bits as 8.
        let is_gpu = free.source == MemorySource::Gpu;
        match (required.max_kv_cache_mib(free.bytes), required.workers) {
            (0, _) if required.quantization == Quantization::None => {
                write!(f, "Use 8-bit weights (--quantize int8), use a smaller model or ")?;
            }
            (0, _) if required.quantization == Quantization::Int8 && !is_gpu => {
                write!(f, "Use 4-bit weights (--quantize int4), use a smaller model or ")?;
            }
            (0, _) => write!(f, "Use a smaller model or ")?,
            (mib, 1) => write!(f, "Lower --kv-cache-memory to {mib}MiB or ")?,
            (mib, _) => write!(f, "Lower --kv-cache-memory to {mib}MiB, or --num-workers, or ")?,
        }
        match free.source {
            MemorySource::Gpu => f.write_str("use a GPU with more memory"),
            MemorySource::Machine | MemorySource::Cgroup { .. } => {
                f.write_str("provide more memory")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use stoker_engine::shapes;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn required(weights: u64, kv_cache: u64, workers: u16) -> MemoryRequirement {
        let quantization = Quantization::Int8;
        MemoryRequirement { quantization, weights, kv_cache, workers, draft: false }
    }

    fn error(required: MemoryRequirement, free: FreeMemory) -> String {
        required.check("./m", Some(free)).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn the_message_shows_the_calculation_and_a_remedy() {
        let message = error(
            required(GIB, GIB, 1),
            FreeMemory { bytes: 2 * GIB, source: MemorySource::Cgroup { limit: 3 * GIB } },
        );
        assert_eq!(
            message,
            "--model ./m needs 1.0 GiB for weights (int8) and 1.0 GiB for keys and values \
             (--kv-cache-memory), 2.1 GiB with a margin of 5 %, but this process may use 2.0 GiB \
             more (the limit of its cgroup is 3.0 GiB). Lower --kv-cache-memory to 926MiB or \
             provide more memory"
        );
    }

    #[test]
    fn the_message_for_a_gpu_names_its_free_memory() {
        let free = FreeMemory { bytes: GIB / 2, source: MemorySource::Gpu };
        let message = error(required(GIB, GIB, 1), free);
        assert!(message.contains("of 5 %, but the GPU has 512.0 MiB free."), "{message}");
    }

    #[test]
    fn workers_share_weights_but_not_caches() {
        let free = FreeMemory { bytes: 4 * GIB, source: MemorySource::Machine };
        assert_eq!(required(GIB, GIB, 2).check("m", Some(free)), Ok(()));
        let message = error(required(GIB, GIB, 3), free);
        for part in ["3 x 1.0 GiB", "4.2 GiB with a margin of 5 %", "to 958MiB, or --num-workers"] {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }

    #[test]
    fn the_recommended_kv_cache_memory_fits() {
        for (workers, free) in [(1, 3 * GIB), (3, 2 * GIB), (7, 5 * GIB + 12_345)] {
            let mib = required(GIB, 0, workers).max_kv_cache_mib(free);
            let free = Some(FreeMemory { bytes: free, source: MemorySource::Machine });
            assert_eq!(required(GIB, mib << 20, workers).check("m", free), Ok(()));
            assert!(required(GIB, (mib + 1) << 20, workers).check("m", free).is_err());
        }
    }

    #[test]
    fn weights_that_do_not_fit_alone_need_a_smaller_model() {
        let free = FreeMemory { bytes: GIB, source: MemorySource::Machine };
        let message = error(required(3 * GIB, GIB, 1), free);
        assert!(
            message.contains(
                "this machine has 1.0 GiB free. Use 4-bit weights (--quantize int4), use"
            ),
            "{message}"
        );
        let smallest =
            MemoryRequirement { quantization: Quantization::Int4, ..required(3 * GIB, GIB, 1) };
        let message = error(smallest, free);
        assert!(
            message.contains("this machine has 1.0 GiB free. Use a smaller model"),
            "{message}"
        );
    }

    #[test]
    fn unknown_free_memory_passes_every_check() {
        assert_eq!(required(u64::MAX, u64::MAX, u16::MAX).check("m", None), Ok(()));
    }

    #[test]
    fn blocks_are_counted_as_the_engine_allocates_them() {
        let model = shapes::named("tinyllama-1.1b").expect("a shape by this name");
        let engine = EngineConfig {
            max_num_seqs: 1,
            max_num_batched_tokens: 1,
            kv_blocks: 10,
            prefix_cache: true,
            max_decode_slowdown: 2.0,
        };
        let required = MemoryRequirement::of(&model, Quantization::None, &engine, 2);
        assert_eq!((required.kv_cache, required.workers), (10 * 16 * 45_056, 2));
        assert_eq!(required.weights, Footprint::of(&model, Quantization::None).weight_bytes);
    }
}

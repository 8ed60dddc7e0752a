//! Whether a model fits into memory, asked before anything of it is read.
//!
//! A model too large would otherwise be found out by the kernel, which ends the process without a word,
//! or, since the cache is given memory only as it fills, in the middle of somebody's answer.

mod free;

use std::fmt;

use bytesize::ByteSize;
use stoker_engine::{EngineConfig, Footprint, model::Quantization, weights::ModelConfig};

pub use free::{FreeMemory, Memory};

/// What is left for everything but weights, keys and values: activations, logits, connections.
const MARGIN_PERCENT: u64 = 5;

/// What loading a model and serving it will take, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRequirement {
    /// How weights are kept.
    pub quantization: Quantization,
    /// All weights, which workers in one process share.
    pub weights: u64,
    /// Keys and values of one worker when its cache is full.
    pub kv_cache: u64,
    /// Workers in this process.
    pub workers: u16,
    /// Whether a draft model is counted in.
    pub draft: bool,
}

/// A model that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooLarge {
    name: String,
    needs: MemoryRequirement,
    free: FreeMemory,
}

impl MemoryRequirement {
    /// What `workers` workers with engines of size `engine` take for a model of shape `model`.
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

    /// Adds a smaller model that guesses for this one, whose cache has as many blocks.
    pub fn add(&mut self, draft: Self) {
        self.weights = self.weights.saturating_add(draft.weights);
        self.kv_cache = self.kv_cache.saturating_add(draft.kv_cache);
        self.draft = true;
    }

    /// Refuses the model called `name` if it needs more than is free. Where nobody can tell, it passes.
    pub fn check(self, name: &str, free: Option<FreeMemory>) -> Result<(), TooLarge> {
        match free {
            Some(free) if self.total() > free.bytes => {
                Err(TooLarge { name: name.to_owned(), needs: self, free })
            }
            _ => Ok(()),
        }
    }

    /// All of it, with the margin.
    fn total(&self) -> u64 {
        let kv_caches = self.kv_cache.saturating_mul(u64::from(self.workers));
        let exact = u128::from(self.weights.saturating_add(kv_caches));
        u64::try_from(exact * u128::from(100 + MARGIN_PERCENT) / 100).unwrap_or(u64::MAX)
    }

    /// The largest `--kv-cache-memory` that fits, in whole MiB.
    fn affordable_mib(&self, free: u64) -> u64 {
        let within_margin = u128::from(free) * 100 / u128::from(100 + MARGIN_PERCENT);
        let left = (within_margin as u64).saturating_sub(self.weights);
        (left / u64::from(self.workers.max(1))) >> 20
    }
}

impl std::error::Error for TooLarge {}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, needs, free } = self;
        let (weights, kv_cache) = (ByteSize::b(needs.weights), ByteSize::b(needs.kv_cache));
        let with = if needs.draft { " with its draft" } else { "" };
        write!(
            f,
            "--model {name}{with} needs {weights} for weights ({}) and ",
            needs.quantization
        )?;
        match needs.workers {
            1 => write!(f, "{kv_cache} for keys and values")?,
            workers => write!(f, "{workers} x {kv_cache} for the keys and values of its workers")?,
        }
        let total = ByteSize::b(needs.total());
        write!(f, " (--kv-cache-memory), {total} with {MARGIN_PERCENT} % to work in; {free}. ")?;
        match (needs.affordable_mib(free.bytes), needs.workers) {
            (0, _) if can_shrink(needs.quantization) => {
                write!(
                    f,
                    "Keep the weights in 8 bits (--quantize int8), take a smaller model or "
                )?;
            }
            (0, _) => write!(f, "Take a smaller model or ")?,
            (mib, 1) => write!(f, "Lower --kv-cache-memory to {mib}MiB or ")?,
            (mib, _) => write!(f, "Lower --kv-cache-memory to {mib}MiB, or --num-workers, or ")?,
        }
        match free.of {
            Memory::Gpu => f.write_str("take another GPU"),
            Memory::Machine | Memory::Group { .. } => f.write_str("give it more memory"),
        }
    }
}

/// Whether the weights could be kept in less.
fn can_shrink(quantization: Quantization) -> bool {
    quantization == Quantization::None && Quantization::ALL.contains(&Quantization::Int8)
}

#[cfg(test)]
mod tests {
    use stoker_engine::shapes;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn needs(weights: u64, kv_cache: u64, workers: u16) -> MemoryRequirement {
        MemoryRequirement { quantization: Quantization::Int8, weights, kv_cache, workers, draft: false }
    }

    fn refusal(needs: MemoryRequirement, free: FreeMemory) -> String {
        needs.check("./m", Some(free)).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn the_message_shows_the_arithmetic_and_a_way_out() {
        let message = refusal(
            needs(GIB, GIB, 1),
            FreeMemory { bytes: 2 * GIB, of: Memory::Group { limit: 3 * GIB } },
        );
        assert_eq!(
            message,
            "--model ./m needs 1.0 GiB for weights (int8) and 1.0 GiB for keys and values \
             (--kv-cache-memory), 2.1 GiB with 5 % to work in; this process may use 2.0 GiB more (the \
             limit of its control group is 3.0 GiB). Lower --kv-cache-memory to 926MiB or give it more memory"
        );
    }

    #[test]
    fn a_gpu_has_memory_of_its_own() {
        let message = refusal(needs(GIB, GIB, 1), FreeMemory { bytes: GIB / 2, of: Memory::Gpu });
        assert!(message.contains("to work in; the GPU has 512.0 MiB free."), "{message}");
    }

    #[test]
    fn workers_share_weights_but_not_caches() {
        let free = FreeMemory { bytes: 4 * GIB, of: Memory::Machine };
        assert_eq!(needs(GIB, GIB, 2).check("m", Some(free)), Ok(()));
        let message = refusal(needs(GIB, GIB, 3), free);
        for part in ["3 x 1.0 GiB", "4.2 GiB with 5 %", "to 958MiB, or --num-workers"] {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }

    #[test]
    fn what_is_advised_fits() {
        for (workers, free) in [(1, 3 * GIB), (3, 2 * GIB), (7, 5 * GIB + 12_345)] {
            let mib = needs(GIB, 0, workers).affordable_mib(free);
            let free = Some(FreeMemory { bytes: free, of: Memory::Machine });
            assert_eq!(needs(GIB, mib << 20, workers).check("m", free), Ok(()));
            assert!(needs(GIB, (mib + 1) << 20, workers).check("m", free).is_err());
        }
    }

    #[test]
    fn weights_that_do_not_fit_alone_are_not_blamed_on_the_cache() {
        let message = refusal(needs(3 * GIB, GIB, 1), FreeMemory { bytes: GIB, of: Memory::Machine });
        assert!(
            message.contains("this machine has 1.0 GiB free. Take a smaller model"),
            "{message}"
        );
    }

    #[test]
    fn without_a_known_limit_everything_passes() {
        assert_eq!(needs(u64::MAX, u64::MAX, u16::MAX).check("m", None), Ok(()));
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
        let needs = MemoryRequirement::of(&model, Quantization::None, &engine, 2);
        assert_eq!((needs.kv_cache, needs.workers), (10 * 16 * 45_056, 2));
        assert_eq!(needs.weights, Footprint::of(&model, Quantization::None).weight_bytes);
    }
}

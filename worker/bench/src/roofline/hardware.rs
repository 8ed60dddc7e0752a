//! Rates of machines: this one as measured, others from their vendors' figures.

use serde::Serialize;
use stoker_ops::cpu::{self, rates};

use super::cli::HardwareName;

/// Peak rates of a machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hardware {
    /// Name of the machine.
    pub name: &'static str,
    /// Source of the figures.
    pub source: &'static str,
    /// Whether the figures were measured on this machine.
    pub measured: bool,
    /// Memory size in bytes. None for this machine.
    pub memory_bytes: Option<f64>,
    /// Memory bandwidth in bytes per second.
    pub bytes_per_second: f64,
    /// Operations per second in f32. A multiply-add counts as two. `None` if the vendor does not
    /// publish it.
    pub f32_ops_per_second: Option<f64>,
    /// Operations per second in bf16 with f32 accumulation. `None` if unknown.
    pub bf16_ops_per_second: Option<f64>,
    /// Operations per second in int8. `None` if unknown.
    pub int8_ops_per_second: Option<f64>,
}

// NVIDIA Ada GPU Architecture whitepaper, appendix A, GeForce RTX 4090: GDDR6X bandwidth; peak FP32
// without tensor cores; peak BF16 (with FP32 accumulation) and INT8 of the tensor cores, without
// sparsity.
const RTX_4090: Hardware = Hardware {
    name: "NVIDIA GeForce RTX 4090",
    source: "NVIDIA Ada GPU Architecture whitepaper, appendix A",
    measured: false,
    memory_bytes: Some(24e9),
    bytes_per_second: 1.008e12,
    f32_ops_per_second: Some(82.6e12),
    bf16_ops_per_second: Some(165.2e12),
    int8_ops_per_second: Some(660.6e12),
};

// NVIDIA H100 Tensor Core GPU Datasheet, column SXM. It gives BF16 and INT8 with sparsity, 1,979
// and 3,958 teraops. Without sparsity they are half of that.
const H100: Hardware = Hardware {
    name: "NVIDIA H100 SXM",
    source: "NVIDIA H100 Tensor Core GPU Datasheet, without sparsity",
    measured: false,
    memory_bytes: Some(80e9),
    bytes_per_second: 3.35e12,
    f32_ops_per_second: Some(67e12),
    bf16_ops_per_second: Some(989.5e12),
    int8_ops_per_second: Some(1979e12),
};

// NVIDIA H200 Tensor Core GPU Datasheet, column SXM: the arithmetic of an H100 with different
// memory.
const H200: Hardware = Hardware {
    name: "NVIDIA H200 SXM",
    source: "NVIDIA H200 Tensor Core GPU Datasheet, without sparsity",
    memory_bytes: Some(141e9),
    bytes_per_second: 4.8e12,
    ..H100
};

// Apple, MacBook Pro (16-inch, Nov 2023) Technical Specifications: the chip with a 40-core GPU.
// Apple does not publish its arithmetic rates, and other sources differ on its clock.
const M3_MAX: Hardware = Hardware {
    name: "Apple M3 Max, 40-core GPU",
    source: "Apple, MacBook Pro (16-inch, Nov 2023) Technical Specifications",
    measured: false,
    memory_bytes: Some(128e9),
    bytes_per_second: 400e9,
    f32_ops_per_second: None,
    bf16_ops_per_second: None,
    int8_ops_per_second: None,
};

impl Hardware {
    /// Returns the figures of `name`. Measuring this machine takes some seconds.
    pub(super) fn of(name: HardwareName) -> Self {
        match name {
            HardwareName::Measured => Self::measured(),
            HardwareName::Rtx4090 => RTX_4090,
            HardwareName::H100 => H100,
            HardwareName::H200 => H200,
            HardwareName::M3Max => M3_MAX,
        }
    }

    fn measured() -> Self {
        // A multiply-add is two operations.
        let ops = |rate: f64| 2.0 * rate;
        Self {
            name: "this machine",
            source: "measured now, on all threads",
            measured: true,
            memory_bytes: None,
            bytes_per_second: cpu::read_bandwidth(),
            f32_ops_per_second: Some(ops(rates::f32_rate())),
            // The CPU backend has no bf16 products.
            bf16_ops_per_second: None,
            int8_ops_per_second: Some(ops(rates::int8_rate())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_plausible_magnitudes() {
        for hardware in [RTX_4090, H100, H200, M3_MAX] {
            assert!((1e11..1e13).contains(&hardware.bytes_per_second), "{hardware:?}");
            let rates = [
                hardware.f32_ops_per_second,
                hardware.bf16_ops_per_second,
                hardware.int8_ops_per_second,
            ];
            let known: Vec<f64> = rates.into_iter().flatten().collect();
            assert!(known.iter().all(|rate| (1e13..1e16).contains(rate)), "{hardware:?}");
            assert!(known.is_sorted(), "fewer bits must not be slower: {hardware:?}");
        }
    }
}

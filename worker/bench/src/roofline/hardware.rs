//! Rates of machines: this one as measured, others from their vendors' figures.

use serde::Serialize;
use stoker_ops::cpu::{
    self,
    rates::{self, Rate},
};

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
    /// Products that were measured on this machine, by format and instruction set.
    pub products: Vec<MeasuredProducts>,
}

/// Measured rate of products, and the peak of the instruction set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MeasuredProducts {
    /// Format of weights and inputs, `f32` or `int8`.
    pub format: &'static str,
    /// Instruction set.
    pub instruction_set: &'static str,
    /// Operations per second: 512 rows by a matrix of 2,048 inputs and 5,632 outputs.
    pub ops_per_second: f64,
    /// Operations per second with operands in registers. `None` if the instruction set has no
    /// instruction for the format.
    pub peak_ops_per_second: Option<f64>,
    /// `ops_per_second` divided by the peak.
    pub share: Option<f64>,
}

impl MeasuredProducts {
    fn new(format: &'static str, rate: Rate) -> Self {
        // A multiply-add is two operations.
        let peak = rate.peak.map(|peak| 2.0 * peak);
        let ops_per_second = 2.0 * rate.products;
        Self {
            format,
            instruction_set: rate.isa.name(),
            ops_per_second,
            peak_ops_per_second: peak,
            share: peak.map(|peak| ops_per_second / peak),
        }
    }
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
    products: Vec::new(),
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
    products: Vec::new(),
};

// NVIDIA H200 Tensor Core GPU Datasheet, column SXM: the arithmetic of an H100 with different
// memory.
const H200: Hardware = Hardware {
    name: "NVIDIA H200 SXM",
    source: "NVIDIA H200 Tensor Core GPU Datasheet, without sparsity",
    measured: false,
    memory_bytes: Some(141e9),
    bytes_per_second: 4.8e12,
    f32_ops_per_second: Some(67e12),
    bf16_ops_per_second: Some(989.5e12),
    int8_ops_per_second: Some(1979e12),
    products: Vec::new(),
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
    products: Vec::new(),
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
        let f32 = MeasuredProducts::new("f32", rates::f32_rate());
        let int8 = rates::int8_rates().into_iter().map(|rate| MeasuredProducts::new("int8", rate));
        let products: Vec<_> = std::iter::once(f32).chain(int8).collect();
        let best = |format: &str| {
            let first = products.iter().find(|products| products.format == format);
            first.map(|products| products.ops_per_second)
        };
        Self {
            name: "this machine",
            source: "measured now, on all threads",
            measured: true,
            memory_bytes: None,
            bytes_per_second: cpu::read_bandwidth(),
            f32_ops_per_second: best("f32"),
            // The CPU backend has no bf16 products.
            bf16_ops_per_second: None,
            int8_ops_per_second: best("int8"),
            products,
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

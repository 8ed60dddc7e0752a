//! What machines can do: this one measured, others by their vendors' figures.

use serde::Serialize;
use stoker_ops::cpu::{self, rates};

use super::cli::HardwareName;

/// What a machine can do at most.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hardware {
    /// What it is.
    pub name: &'static str,
    /// Where the figures are from.
    pub source: &'static str,
    /// Whether they were measured just now, on this machine.
    pub measured: bool,
    /// Bytes of memory, where they limit what can be run.
    pub memory_bytes: Option<f64>,
    /// Bytes a second from memory.
    pub bytes_per_second: f64,
    /// Operations a second in f32, a multiplication and an addition each being one; `None` where nobody says.
    pub f32_ops_per_second: Option<f64>,
    /// The same of products in bf16 that are summed in f32.
    pub bf16_ops_per_second: Option<f64>,
    /// The same of products in int8.
    pub int8_ops_per_second: Option<f64>,
}

// NVIDIA Ada GPU Architecture whitepaper, appendix A, GeForce RTX 4090: GDDR6X; peak FP32 without tensor cores;
// peak BF16 and INT8 of the tensor cores, the first with FP32 accumulation, the figures without sparsity.
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

// NVIDIA H100 Tensor Core GPU Datasheet, column SXM. It gives BF16 and INT8 with sparsity, 1,979 and 3,958 teraops;
// without it they are half as much.
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

// NVIDIA H200 Tensor Core GPU Datasheet, column SXM: the arithmetic of an H100, and other memory.
const H200: Hardware = Hardware {
    name: "NVIDIA H200 SXM",
    source: "NVIDIA H200 Tensor Core GPU Datasheet, without sparsity",
    memory_bytes: Some(141e9),
    bytes_per_second: 4.8e12,
    ..H100
};

// Apple, MacBook Pro (16-inch, Nov 2023) Technical Specifications: the chip with a 40-core GPU. Apple says nothing of
// its arithmetic, and what others say of its clock differs.
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
    /// What `name` can do. Measures this machine where it is meant, for some seconds.
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
            bytes_per_second: cpu::read_rate(),
            f32_ops_per_second: Some(ops(rates::f32_rate())),
            // There are no products in bf16 here.
            bf16_ops_per_second: None,
            int8_ops_per_second: Some(ops(rates::int8_rate())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_in_bytes_and_operations_a_second() {
        for hardware in [RTX_4090, H100, H200, M3_MAX] {
            assert!((1e11..1e13).contains(&hardware.bytes_per_second), "{hardware:?}");
            let rates = [
                hardware.f32_ops_per_second,
                hardware.bf16_ops_per_second,
                hardware.int8_ops_per_second,
            ];
            let known: Vec<f64> = rates.into_iter().flatten().collect();
            assert!(known.iter().all(|rate| (1e13..1e16).contains(rate)), "{hardware:?}");
            assert!(known.is_sorted(), "fewer bits are faster: {hardware:?}");
        }
    }
}

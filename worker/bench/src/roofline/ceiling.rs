//! Cost of a decode step, and the upper bound on tokens per second that follows from it.

use serde::Serialize;
use stoker_engine::{Footprint, model::Quantization, weights::ModelConfig};

use super::Hardware;

/// Data type of weights and products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightFormat {
    /// 4 bytes, like keys and values.
    F32,
    /// 2 bytes, like keys and values.
    Bf16,
    /// 1 byte with a scale per output channel. Keys and values have 2 bytes.
    Int8,
    /// Layers in 4 bits, tables and products in 8. Keys and values have 2 bytes.
    Int4,
}

/// The resource that limits throughput.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Memory bandwidth, for weights, keys and values.
    Memory,
    /// Arithmetic.
    Compute,
}

/// Upper bound on tokens per second.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ceiling {
    /// Data type of the weights.
    pub weights: WeightFormat,
    /// Sequences that decode together.
    pub batch: u64,
    /// Tokens per second of all sequences that memory bandwidth allows.
    pub memory_tokens_per_second: f64,
    /// Tokens per second of all sequences that arithmetic allows. `None` if its rate is unknown.
    pub compute_tokens_per_second: Option<f64>,
    /// The lower of the two bounds.
    pub tokens_per_second: f64,
    /// The resource with the lower bound.
    pub bound: Bound,
    /// Whether weights, keys and values exceed the machine's memory.
    pub too_large: bool,
}

/// Cost of a decode step.
#[derive(Debug, Clone, Copy, PartialEq)]
struct StepCost {
    /// Bytes of all weights.
    all_weights: f64,
    /// Bytes of weights that the step reads.
    weights: f64,
    /// Bytes of keys and values that the step reads per sequence.
    keys_and_values: f64,
    /// Operations of matrix products per sequence.
    products: f64,
    /// Operations of attention per sequence.
    attention: f64,
}

impl WeightFormat {
    /// All formats.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Int8, Self::Int4];

    /// Returns the name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Returns the rates of matrix products and of attention.
    fn rates(self, hardware: &Hardware) -> (Option<f64>, Option<f64>) {
        let f32 = hardware.f32_ops_per_second;
        let bf16 = hardware.bf16_ops_per_second;
        match self {
            Self::F32 => (f32, f32),
            Self::Bf16 => (bf16, bf16),
            // Keys and values are not stored in 8 bits.
            Self::Int8 | Self::Int4 => (hardware.int8_ops_per_second, bf16.or(f32)),
        }
    }
}

impl StepCost {
    /// Returns the cost for a model whose sequences hold `context` positions each.
    fn of(model: &ModelConfig, kind: WeightFormat, context: u64) -> Self {
        let in_f32 = Footprint::of(model, Quantization::None);
        let (footprint, divisor) = match kind {
            WeightFormat::F32 => (in_f32, 1.0),
            WeightFormat::Bf16 => (in_f32, 2.0),
            WeightFormat::Int8 => (Footprint::of(model, Quantization::Int8), 1.0),
            WeightFormat::Int4 => (Footprint::of(model, Quantization::Int4), 1.0),
        };
        let attended = attended_positions(model, context) as f64;
        Self {
            all_weights: footprint.weight_bytes as f64 / divisor,
            weights: footprint.step_weight_bytes as f64 / divisor,
            keys_and_values: footprint.kv_token_bytes as f64 / divisor / model.num_layers as f64
                * attended,
            products: 2.0 * in_f32.macs_per_token as f64,
            // Queries times keys, and attention weights times values.
            attention: 2.0 * 2.0 * model.q_size() as f64 * attended,
        }
    }
}

/// Returns the positions that a token attends to, summed over the layers.
fn attended_positions(model: &ModelConfig, context: u64) -> u64 {
    let layer =
        |layer| model.window(layer).map_or(context, |window| context.min(window.get() as u64));
    (0..model.num_layers).map(layer).sum()
}

impl Ceiling {
    /// Computes the bound for `batch` sequences that hold `context` positions each.
    pub(super) fn of(
        hardware: &Hardware,
        model: &ModelConfig,
        kind: WeightFormat,
        batch: u64,
        context: u64,
    ) -> Self {
        let step = StepCost::of(model, kind, context);
        let sequences = batch as f64;
        let keys_and_values = sequences * step.keys_and_values;
        let bytes = step.weights + keys_and_values;
        let memory = sequences * hardware.bytes_per_second / bytes;
        let compute = match kind.rates(hardware) {
            (Some(products), Some(attention)) => {
                Some(1.0 / (step.products / products + step.attention / attention))
            }
            _ => None,
        };
        let (tokens_per_second, bound) = match compute {
            Some(compute) if compute < memory => (compute, Bound::Compute),
            _ => (memory, Bound::Memory),
        };
        Self {
            weights: kind,
            batch,
            memory_tokens_per_second: memory,
            compute_tokens_per_second: compute,
            tokens_per_second,
            bound,
            too_large: hardware
                .memory_bytes
                .is_some_and(|limit| step.all_weights + keys_and_values > limit),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use stoker_engine::shapes;

    use super::*;
    use crate::roofline::cli::HardwareName;

    fn tinyllama() -> ModelConfig {
        shapes::named("tinyllama-1.1b").expect("a shape by this name")
    }

    fn close(a: f64, b: f64) -> bool {
        (a / b - 1.0).abs() < 1e-3
    }

    #[test]
    fn a_step_reads_weights_once_and_the_keys_and_values_of_each_sequence() {
        let step = StepCost::of(&tinyllama(), WeightFormat::Int8, 512);
        assert_eq!((step.weights, step.keys_and_values), (1_036_493_824.0, 512.0 * 22_528.0));
        assert_eq!(step.products, 2.0 * 1_034_420_224.0);
        assert_eq!(step.attention, 4.0 * 2048.0 * 512.0 * 22.0);
        let bf16 = StepCost::of(&tinyllama(), WeightFormat::Bf16, 512);
        assert_eq!((2.0 * bf16.weights, bf16.attention), (4.138_049_536e9, step.attention));
    }

    #[test]
    fn layers_with_a_sliding_window_read_only_the_window() {
        let mut model = tinyllama();
        model.windows = vec![NonZeroUsize::new(128); 11];
        assert_eq!(attended_positions(&model, 512), 11 * 128 + 11 * 512);
        assert_eq!(attended_positions(&model, 100), 22 * 100);
    }

    #[test]
    fn one_sequence_is_memory_bound_and_many_are_compute_bound() {
        let slow = Hardware {
            bytes_per_second: 10e9,
            f32_ops_per_second: Some(100e9),
            ..Hardware::of(HardwareName::H100)
        };
        let ceiling = |batch| Ceiling::of(&slow, &tinyllama(), WeightFormat::F32, batch, 512);
        let (one, many) = (ceiling(1), ceiling(64));
        // 4.14 GB of weights and 23 MB of keys and values; 2.07 and 0.09 billion operations.
        assert!(close(one.tokens_per_second, 10e9 / 4.161_118e9), "{one:?}");
        assert_eq!(one.bound, Bound::Memory);
        assert!(close(many.tokens_per_second, 100e9 / 2.161_115e9), "{many:?}");
        assert_eq!((many.bound, many.too_large), (Bound::Compute, false));
        assert_eq!(one.compute_tokens_per_second, many.compute_tokens_per_second);
    }

    #[test]
    fn an_unknown_rate_is_not_a_bound() {
        let ceiling = Ceiling::of(
            &Hardware::of(HardwareName::M3Max),
            &tinyllama(),
            WeightFormat::Bf16,
            1,
            512,
        );
        assert_eq!((ceiling.compute_tokens_per_second, ceiling.bound), (None, Bound::Memory));
        assert!(close(ceiling.tokens_per_second, 400e9 / 2.080_559e9), "{ceiling:?}");
    }

    #[test]
    fn a_model_that_exceeds_memory_is_marked() {
        let model = shapes::named("llama-3-8b").expect("a shape by this name");
        let hardware = Hardware::of(HardwareName::Rtx4090);
        let too_large =
            WeightFormat::ALL.map(|kind| Ceiling::of(&hardware, &model, kind, 1, 512).too_large);
        assert_eq!(too_large, [true, false, false, false]);
    }
}

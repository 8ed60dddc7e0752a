//! What a step that decodes takes of a machine, and so how many tokens a second there can be at most.

use serde::Serialize;
use stoker_engine::{Footprint, model::Quantization, weights::ModelConfig};

use super::Hardware;

/// What weights are kept and multiplied in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// 4 bytes; keys and values too.
    F32,
    /// 2 bytes; keys and values too.
    Bf16,
    /// 1 byte and a scale for each output; keys and values in 2 bytes.
    Int8,
}

/// What keeps a machine from more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Weights, keys and values come too slowly.
    Memory,
    /// Products take too long.
    Compute,
}

/// The most tokens a second.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ceiling {
    /// What weights are kept in.
    pub weights: Kind,
    /// Sequences that decode together.
    pub batch: u64,
    /// Tokens a second that memory allows, of all sequences together.
    pub memory_tokens_per_second: f64,
    /// Tokens a second that arithmetic allows; `None` where its rate is not known.
    pub compute_tokens_per_second: Option<f64>,
    /// The lower of the two.
    pub tokens_per_second: f64,
    /// Which that is.
    pub bound: Bound,
    /// Whether weights, keys and values are more than the machine has memory for.
    pub too_large: bool,
}

/// What a step takes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Step {
    /// Bytes of weights that there are.
    held: f64,
    /// Bytes of weights that it reads.
    weights: f64,
    /// Bytes of keys and values that it reads for one sequence.
    keys_and_values: f64,
    /// Operations in matrices for one sequence.
    products: f64,
    /// Operations in attention for one sequence.
    attention: f64,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int8];

    /// As tables name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// Of products, and of attention.
    fn rates(self, hardware: &Hardware) -> (Option<f64>, Option<f64>) {
        let f32 = hardware.f32_ops_per_second;
        let bf16 = hardware.bf16_ops_per_second;
        match self {
            Self::F32 => (f32, f32),
            Self::Bf16 => (bf16, bf16),
            // What is attended to is not kept in 8 bits.
            Self::Int8 => (hardware.int8_ops_per_second, bf16.or(f32)),
        }
    }
}

impl Step {
    /// Of a model whose sequences hold `context` positions each.
    fn of(model: &ModelConfig, kind: Kind, context: u64) -> Self {
        let in_f32 = Footprint::of(model, Quantization::None);
        let (kept, divisor) = match kind {
            Kind::F32 => (in_f32, 1.0),
            Kind::Bf16 => (in_f32, 2.0),
            Kind::Int8 => (Footprint::of(model, Quantization::Int8), 1.0),
        };
        let seen = seen(model, context) as f64;
        Self {
            held: kept.weight_bytes as f64 / divisor,
            weights: kept.step_weight_bytes as f64 / divisor,
            keys_and_values: kept.kv_token_bytes as f64 / divisor / model.num_layers as f64 * seen,
            products: 2.0 * in_f32.macs_per_token as f64,
            // Each query head by the keys, and what comes of it by the values.
            attention: 2.0 * 2.0 * model.q_size() as f64 * seen,
        }
    }
}

/// Positions that a token sees, summed over the layers.
fn seen(model: &ModelConfig, context: u64) -> u64 {
    let layer = |layer| model.window(layer).map_or(context, |most| context.min(most.get() as u64));
    (0..model.num_layers).map(layer).sum()
}

impl Ceiling {
    /// Of `batch` sequences that hold `context` positions each.
    pub(super) fn of(
        hardware: &Hardware,
        model: &ModelConfig,
        kind: Kind,
        batch: u64,
        context: u64,
    ) -> Self {
        let step = Step::of(model, kind, context);
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
            too_large: hardware.memory_bytes.is_some_and(|most| step.held + keys_and_values > most),
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
        let step = Step::of(&tinyllama(), Kind::Int8, 512);
        assert_eq!((step.weights, step.keys_and_values), (1_036_493_824.0, 512.0 * 22_528.0));
        assert_eq!(step.products, 2.0 * 1_034_420_224.0);
        assert_eq!(step.attention, 4.0 * 2048.0 * 512.0 * 22.0);
        let bf16 = Step::of(&tinyllama(), Kind::Bf16, 512);
        assert_eq!((2.0 * bf16.weights, bf16.attention), (4.138_049_536e9, step.attention));
    }

    #[test]
    fn layers_with_a_window_read_no_more_than_it() {
        let mut model = tinyllama();
        model.windows = vec![NonZeroUsize::new(128); 11];
        assert_eq!(seen(&model, 512), 11 * 128 + 11 * 512);
        assert_eq!(seen(&model, 100), 22 * 100);
    }

    #[test]
    fn one_sequence_waits_for_memory_and_many_for_products() {
        let slow = Hardware {
            bytes_per_second: 10e9,
            f32_ops_per_second: Some(100e9),
            ..Hardware::of(HardwareName::H100)
        };
        let ceiling = |batch| Ceiling::of(&slow, &tinyllama(), Kind::F32, batch, 512);
        let (one, many) = (ceiling(1), ceiling(64));
        // 4.14 GB of weights and 23 MB of keys and values; 2.07 and 0.09 billion operations.
        assert!(close(one.tokens_per_second, 10e9 / 4.161_118e9), "{one:?}");
        assert_eq!(one.bound, Bound::Memory);
        assert!(close(many.tokens_per_second, 100e9 / 2.161_115e9), "{many:?}");
        assert_eq!((many.bound, many.too_large), (Bound::Compute, false));
        assert_eq!(one.compute_tokens_per_second, many.compute_tokens_per_second);
    }

    #[test]
    fn what_is_not_known_does_not_bind() {
        let ceiling =
            Ceiling::of(&Hardware::of(HardwareName::M3Max), &tinyllama(), Kind::Bf16, 1, 512);
        assert_eq!((ceiling.compute_tokens_per_second, ceiling.bound), (None, Bound::Memory));
        assert!(close(ceiling.tokens_per_second, 400e9 / 2.080_559e9), "{ceiling:?}");
    }

    #[test]
    fn what_no_memory_holds_is_told() {
        let model = shapes::named("llama-3-8b").expect("a shape by this name");
        let hardware = Hardware::of(HardwareName::Rtx4090);
        let too_large =
            Kind::ALL.map(|kind| Ceiling::of(&hardware, &model, kind, 1, 512).too_large);
        assert_eq!(too_large, [true, false, false]);
    }
}

//! The tensors of a model and their random values.

use std::io::{self, Write};

use half::bf16;
use rayon::prelude::*;
use stoker_engine::{
    sampling::mix64,
    weights::{ModelConfig, tensor_shapes},
};

use super::encoding::Encoding;

/// Approximate size of the chunks in which rows are generated and written.
const CHUNK_BYTES: usize = 4 << 20;
/// 2^64 divided by the golden ratio: spreads consecutive numbers over 64 bits.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A tensor whose values are seeded by its index in the model.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    /// Name in SafeTensors.
    pub(super) name: String,
    /// Dimensions, outermost first.
    pub(super) shape: Vec<usize>,
    /// Values are distributed uniformly within `spread` of `middle`.
    middle: f32,
    spread: f32,
    key: u64,
}

/// Returns all tensors of a model of this shape, layer by layer.
pub(super) fn of(config: &ModelConfig) -> Vec<Tensor> {
    let tensors = tensor_shapes(config).zip(1..);
    tensors
        .map(|((name, shape), number)| {
            let (middle, spread) = match shape.as_slice() {
                // Keeps sums of `k` products at the scale of their inputs.
                [_, k] if !name.contains("embed_tokens") => (0.0, 1.0 / (*k as f32).sqrt()),
                [_, _] => (0.0, 1.0),
                // Norm weights.
                _ => (1.0, 0.125),
            };
            Tensor { name, shape, middle, spread, key: mix64(number) }
        })
        .collect()
}

impl Tensor {
    /// Returns whether the tensor is a matrix rather than norm weights.
    pub(super) fn is_matrix(&self) -> bool {
        self.shape.len() > 1
    }

    /// Returns the number of rows and the elements per row.
    fn rows(&self) -> (usize, usize) {
        match self.shape.as_slice() {
            [rows, len] => (*rows, *len),
            shape => (1, shape.iter().product()),
        }
    }

    /// Returns its size in bytes.
    pub(super) fn bytes(&self, encoding: Encoding) -> u64 {
        let (rows, len) = self.rows();
        (rows * encoding.row_bytes(len)) as u64
    }

    /// Generates the values of a row, each exactly representable in bf16.
    fn generate(&self, row: usize, values: &mut [f32]) {
        let key = mix64(self.key.wrapping_add((row as u64).wrapping_mul(GOLDEN)));
        for (four, number) in values.chunks_mut(4).zip(1u64..) {
            let mut bits = mix64(key.wrapping_add(number.wrapping_mul(GOLDEN)));
            for value in four {
                let unit = f32::from(bits as u16) / 32_768.0 - 1.0;
                *value = bf16::from_f32(self.middle + unit * self.spread).to_f32();
                bits >>= 16;
            }
        }
    }

    /// Writes the rows and reports the bytes to `wrote`. The `i`th row written is row `order(i)`.
    pub(super) fn write(
        &self,
        out: &mut impl Write,
        encoding: Encoding,
        order: impl Fn(usize) -> usize + Sync,
        mut wrote: impl FnMut(u64),
    ) -> io::Result<()> {
        let (rows, len) = self.rows();
        let row_bytes = encoding.row_bytes(len);
        let rows_per_chunk = (CHUNK_BYTES / row_bytes).clamp(1, rows);
        let mut buffer = vec![0; rows_per_chunk * row_bytes];
        for first in (0..rows).step_by(rows_per_chunk) {
            let chunk = &mut buffer[..rows_per_chunk.min(rows - first) * row_bytes];
            let rows = chunk.par_chunks_exact_mut(row_bytes).enumerate();
            rows.for_each_init(
                || vec![0.0; len],
                |values, (row, bytes)| {
                    self.generate(order(first + row), values);
                    encoding.encode(values, bytes);
                },
            );
            out.write_all(chunk)?;
            wrote(chunk.len() as u64);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Shape;

    #[test]
    fn values_cover_their_range_and_all_rows_differ() {
        let tensors = of(&Shape::Tiny.config());
        for tensor in &tensors {
            let (rows, len) = tensor.rows();
            let mut all = Vec::new();
            for row in 0..rows {
                let mut values = vec![0.0; len];
                tensor.generate(row, &mut values);
                assert!(!all.contains(&values), "{} has row {row} twice", tensor.name);
                all.push(values);
            }
            let all = all.concat();
            let furthest = all.iter().map(|v| (v - tensor.middle).abs()).fold(0.0, f32::max);
            let mean = all.iter().map(|v| v - tensor.middle).sum::<f32>() / all.len() as f32;
            assert!((0.9..=1.01).contains(&(furthest / tensor.spread)), "{}", tensor.name);
            assert!(mean.abs() < 0.2 * tensor.spread, "{}: {mean}", tensor.name);
        }
        assert!(tensors.iter().any(|tensor| tensor.name == "lm_head.weight"));
    }
}

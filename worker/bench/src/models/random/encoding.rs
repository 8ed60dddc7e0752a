//! Encodings of weights.

use half::{bf16, f16};

/// Elements of a Q8_0 block.
const BLOCK: usize = 32;
/// Bytes of a Q8_0 block: an f16 scale and a signed byte per element.
const BLOCK_BYTES: usize = 2 + BLOCK;

/// Encoding of the values of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "the name that GGUF has for this type")]
pub(super) enum Encoding {
    /// Single precision.
    F32,
    /// The upper 16 bits of single precision.
    Bf16,
    /// Blocks of 32 signed bytes with a common scale.
    Q8_0,
}

impl Encoding {
    /// Returns the size of a row of `len` elements in bytes. With `Q8_0`, `len` is a multiple of
    /// 32.
    pub(super) const fn row_bytes(self, len: usize) -> usize {
        match self {
            Self::F32 => 4 * len,
            Self::Bf16 => 2 * len,
            Self::Q8_0 => len / BLOCK * BLOCK_BYTES,
        }
    }

    /// Encodes a row into `bytes`, which has the size of [`Self::row_bytes`].
    pub(super) fn encode(self, values: &[f32], bytes: &mut [u8]) {
        match self {
            Self::F32 => {
                for (bytes, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                    *bytes = value.to_le_bytes();
                }
            }
            Self::Bf16 => {
                for (bytes, value) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                    *bytes = bf16::from_f32(*value).to_le_bytes();
                }
            }
            Self::Q8_0 => {
                let blocks = values.as_chunks::<BLOCK>().0.iter();
                for (bytes, values) in bytes.as_chunks_mut::<BLOCK_BYTES>().0.iter_mut().zip(blocks)
                {
                    *bytes = q8_0(values);
                }
            }
        }
    }
}

/// Encodes a block. The scale maps the largest absolute value to 127.
fn q8_0(values: &[f32; BLOCK]) -> [u8; BLOCK_BYTES] {
    let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let scale = f16::from_f32(largest / 127.0);
    // Uses the scale as stored, so that its rounding adds no error.
    let steps = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
    let mut bytes = [0; BLOCK_BYTES];
    bytes[..2].copy_from_slice(&scale.to_le_bytes());
    for (byte, value) in bytes[2..].iter_mut().zip(values) {
        let level = (value * steps).round().clamp(-127.0, 127.0) as i8;
        *byte = level.to_le_bytes()[0];
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_accurate_to_half_a_step() {
        let values: [f32; BLOCK] = std::array::from_fn(|i| (i as f32 - 11.3) * 0.37);
        let bytes = q8_0(&values);
        let scale = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
        for (byte, value) in bytes[2..].iter().zip(values) {
            let stored = f32::from(i8::from_le_bytes([*byte])) * scale;
            // The largest value may be clamped by the rounding error of the scale.
            assert!((stored - value).abs() <= 0.57 * scale, "stored {stored}, expected {value}");
        }
        assert_eq!(q8_0(&[0.0; BLOCK]), [0; BLOCK_BYTES]);
    }
}

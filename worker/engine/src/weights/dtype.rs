//! Element types of stored weights, and their sizes.

use std::fmt;

use super::dequantize::{self, BlockLayout};

/// How the elements of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the names that both file formats use for these types")]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a single-precision float.
    BF16,
    /// Blocks of 32 signed bytes under one half-precision scale.
    Q8_0,
    /// Blocks of 32 elements in 4 bits around zero.
    Q4_0,
    /// Blocks of 32 elements in 4 bits above a minimum.
    Q4_1,
    /// Blocks of 32 elements in 5 bits around zero.
    Q5_0,
    /// Blocks of 32 elements in 5 bits above a minimum.
    Q5_1,
    /// Blocks of 256 elements in 4 bits, with a scale and a minimum for each 32.
    Q4_K,
    /// Blocks of 256 elements in 5 bits, with a scale and a minimum for each 32.
    Q5_K,
    /// Blocks of 256 elements in 6 bits around zero, with a scale for each 16.
    Q6_K,
}

impl Dtype {
    /// Returns the layout of a block; `None` for types whose elements are stored individually.
    pub(super) const fn layout(self) -> Option<&'static BlockLayout> {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => None,
            Self::Q8_0 => Some(&dequantize::Q8_0),
            Self::Q4_0 => Some(&dequantize::Q4_0),
            Self::Q4_1 => Some(&dequantize::Q4_1),
            Self::Q5_0 => Some(&dequantize::Q5_0),
            Self::Q5_1 => Some(&dequantize::Q5_1),
            Self::Q4_K => Some(&dequantize::Q4_K),
            Self::Q5_K => Some(&dequantize::Q5_K),
            Self::Q6_K => Some(&dequantize::Q6_K),
        }
    }

    /// Number of elements in a block; row lengths are multiples of it.
    pub const fn block_len(self) -> usize {
        match self.layout() {
            Some(layout) => layout.len,
            None => 1,
        }
    }

    /// Size of a block in bytes.
    pub const fn block_bytes(self) -> usize {
        match self.layout() {
            Some(layout) => layout.bytes,
            None if matches!(self, Self::F32) => 4,
            None => 2,
        }
    }

    /// Size in bytes of a row of `len` elements; `None` if it is not whole blocks or overflows.
    pub const fn row_bytes(self, len: usize) -> Option<usize> {
        if !len.is_multiple_of(self.block_len()) {
            return None;
        }
        (len / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

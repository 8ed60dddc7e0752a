//! Packing of a matrix in 8 bits: rows of words, padded with zeros.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{buffer::Buffer, rows::ALIGN};

/// Number of words that a cube writes.
const UNITS: u32 = 256;
/// Maximum number of cubes along `y`. With more rows, each cube takes every n-th row.
const ROWS: usize = 65_535;

/// Packs `values [n, k]` in bytes into words `[1, n, padded / 4]`.
pub(super) fn pack(values: CubeTensor) -> CubeTensor {
    let values = Buffer::new(values);
    let (n, k) = (values.dim(0), values.dim(1));
    let words = k.next_multiple_of(ALIGN) / 4;
    let out = Buffer::empty(&values.0, [1, n, words], DType::I32);
    if n * words > 0 {
        // Read as words, since some devices have no bytes.
        let bytes = &values.0;
        // SAFETY: an allocation has at least the size of its contents, rounded up to whole words.
        let from = unsafe { BufferArg::from_raw_parts(bytes.handle.clone(), (n * k).div_ceil(4)) };
        // SAFETY: buffers have the sizes of their shapes; the kernel skips words past the end.
        unsafe {
            pack_rows::launch_unchecked(
                values.launcher(),
                CubeCount::Static((words as u32).div_ceil(UNITS), n.min(ROWS) as u32, 1),
                CubeDim::new_1d(UNITS),
                from,
                out.arg(),
                n as u32,
                k as u32,
                words as u32,
            );
        }
    }
    out.0
}

#[cube(launch_unchecked, create_dummy_kernel)]
pub(in crate::cube) fn pack_rows(from: &[u32], to: &mut [i32], n: u32, k: u32, words: u32) {
    let (n, k, words) = (n as usize, k as usize, words as usize);
    let word = (CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X) as usize;
    if word < words {
        let mut row = CUBE_POS_Y as usize;
        while row < n {
            let mut packed = 0u32;
            #[unroll]
            for j in 0..4usize {
                let i = word * 4 + j;
                if i < k {
                    let at = row * k + i;
                    let byte = (from[at / 4] >> (8 * (at % 4) as u32)) & 0xffu32;
                    packed |= byte << (8 * j as u32);
                }
            }
            to[row * words + word] = i32::reinterpret(packed);
            row += CUBE_COUNT_Y as usize;
        }
    }
}

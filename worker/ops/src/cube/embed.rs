//! Lookup of rows in the embedding table.

use burn::tensor::DType;
use cubecl::prelude::*;

use super::{buffer::Buffer, int8::Matrix};

/// Number of elements that a cube writes.
const UNITS: u32 = 256;

/// Returns the rows of `table [n, k]` with indices `ids [t]`.
pub(super) fn float(ids: &Buffer, table: &Buffer) -> Buffer {
    let (t, k) = (ids.len(), table.dim(1));
    let out = Buffer::empty(&table.0, [t, k], DType::F32);
    if t * k > 0 {
        // SAFETY: buffers have the sizes of their shapes, and `ids` are indices of the table's
        // rows.
        unsafe {
            embed_f32::launch_unchecked(
                table.launcher(),
                CubeCount::Static((k as u32).div_ceil(UNITS), t as u32, 1),
                CubeDim::new_1d(UNITS),
                ids.arg(),
                table.arg(),
                out.arg(),
                k as u32,
            );
        }
    }
    out
}

/// Same for a table in 8 bits with `k` inputs.
pub(super) fn int8(ids: &Buffer, table: &Matrix, k: usize) -> Buffer {
    let t = ids.len();
    let out = Buffer::empty(&table.values.0, [t, k], DType::F32);
    if t * k > 0 {
        // SAFETY: buffers have the sizes of their shapes, and `ids` are indices of the table's
        // rows.
        unsafe {
            embed_int8::launch_unchecked(
                table.values.launcher(),
                CubeCount::Static((k as u32).div_ceil(UNITS), t as u32, 1),
                CubeDim::new_1d(UNITS),
                ids.arg(),
                table.values.arg(),
                table.scales.arg(),
                out.arg(),
                k as u32,
                table.words() as u32,
            );
        }
    }
    out
}

#[cube(launch_unchecked, create_dummy_kernel)]
pub(in crate::cube) fn embed_f32(ids: &[i32], table: &[f32], out: &mut [f32], k: u32) {
    let (k, token) = (k as usize, CUBE_POS_Y as usize);
    let i = (CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X) as usize;
    if i < k {
        out[token * k + i] = table[ids[token] as usize * k + i];
    }
}

#[cube(launch_unchecked, create_dummy_kernel)]
pub(in crate::cube) fn embed_int8(
    ids: &[i32],
    table: &[i32],
    scales: &[f32],
    out: &mut [f32],
    k: u32,
    words: u32,
) {
    let (k, token) = (k as usize, CUBE_POS_Y as usize);
    let i = (CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X) as usize;
    if i < k {
        let id = ids[token] as usize;
        let word = table[id * words as usize + i / 4];
        // Shifts the byte to the top, and back with sign extension.
        let value = (word << (24 - 8 * (i % 4) as i32)) >> 24i32;
        out[token * k + i] = f32::cast_from(value) * scales[id];
    }
}

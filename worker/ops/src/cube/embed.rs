//! Rows of the embedding table.

use burn::tensor::DType;
use cubecl::prelude::*;

use super::{buffer::Buffer, int8::Matrix};

/// Elements that a cube writes.
const UNITS: u32 = 256;

/// The rows of `table [n, k]` that `ids [t]` name.
pub(super) fn float(ids: &Buffer, table: &Buffer) -> Buffer {
    let (t, k) = (ids.len(), table.dim(1));
    let out = Buffer::empty(&table.0, [t, k], DType::F32);
    if t * k > 0 {
        // SAFETY: buffers are as long as their shapes say, and `ids` names rows of the table.
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

/// The same of a table in 8 bits, of `k` inputs.
pub(super) fn int8(ids: &Buffer, table: &Matrix, k: usize) -> Buffer {
    let t = ids.len();
    let out = Buffer::empty(&table.values.0, [t, k], DType::F32);
    if t * k > 0 {
        // SAFETY: buffers are as long as their shapes say, and `ids` names rows of the table.
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
        // Up to the top, and down again with its sign.
        let value = (word << (24 - 8 * (i % 4) as i32)) >> 24i32;
        out[token * k + i] = f32::cast_from(value) * scales[id];
    }
}

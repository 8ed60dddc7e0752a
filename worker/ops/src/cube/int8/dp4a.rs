//! Products for few rows: a plane computes an output, and each unit has several loads in flight.

use cubecl::prelude::*;

use super::{Int8Epilogue, Words, finished, gated};
use crate::cube::buffer::Buffer;

/// Number of planes of a cube, each of which computes one output.
const PLANES: u32 = 4;
/// Number of rows that are multiplied with the weights at a time.
const ROWS: usize = 8;
/// Number of vectors that a unit loads before it uses the first.
const AHEAD: usize = 4;

/// Returns the number of rows to multiply at a time out of `t`: kernels exist for 1, 2, 4 and 8.
pub(super) fn rows_at_once(t: usize) -> usize {
    t.next_power_of_two().min(ROWS)
}

/// Returns the cubes of a launch that multiplies `rows` rows at a time, and their size.
pub(super) fn launch_shape(out: &Buffer, rows: usize) -> (CubeCount, CubeDim) {
    let (t, n) = (out.dim(0) as u32, out.dim(1) as u32);
    let count = CubeCount::Static(n.div_ceil(PLANES), t.div_ceil(rows as u32), 1);
    (count, CubeDim::new_2d(out.plane(), PLANES))
}

/// Adds the products of some words to `sum`.
#[cube]
fn add(sum: i32, x: Words, w: Words) -> i32 {
    let mut sum = sum;
    #[unroll]
    for j in 0..4usize {
        sum = dp4a(x.extract(j), w.extract(j), sum);
    }
    sum
}

/// Returns sums of products of `rows` rows from `first` on with one output; equal in all units of
/// the plane.
#[cube]
fn dots(
    x: &[Words],
    w: &[Words],
    first: usize,
    output: usize,
    t: usize,
    words: usize,
    #[comptime] rows: usize,
) -> Array<i32> {
    let lanes = CUBE_DIM_X as usize;
    let mut sums = Array::<i32>::new(rows);
    #[unroll]
    for r in 0..rows {
        sums[r] = 0i32;
    }
    let weights = output * words;
    let mut i = UNIT_POS_X as usize;
    while i + (AHEAD - 1) * lanes < words {
        let mut ahead = Array::<Words>::new(AHEAD);
        #[unroll]
        for a in 0..AHEAD {
            ahead[a] = w[weights + i + a * lanes];
        }
        #[unroll]
        for a in 0..AHEAD {
            #[unroll]
            for r in 0..rows {
                let row = min(first + r, t - 1);
                sums[r] = add(sums[r], x[row * words + i + a * lanes], ahead[a]);
            }
        }
        i += AHEAD * lanes;
    }
    while i < words {
        let word = w[weights + i];
        #[unroll]
        for r in 0..rows {
            let row = min(first + r, t - 1);
            sums[r] = add(sums[r], x[row * words + i], word);
        }
        i += lanes;
    }
    #[unroll]
    for r in 0..rows {
        sums[r] = plane_sum(sums[r]);
    }
    sums
}

/// Same with one output of each of two matrices that share the inputs: `rows` sums of the first,
/// then `rows` of the second.
#[cube]
fn two_dots(
    x: &[Words],
    one: &[Words],
    other: &[Words],
    first: usize,
    output: usize,
    t: usize,
    words: usize,
    #[comptime] rows: usize,
) -> Array<i32> {
    let lanes = CUBE_DIM_X as usize;
    let mut sums = Array::<i32>::new(comptime!(2 * rows));
    #[unroll]
    for r in 0..comptime!(2 * rows) {
        sums[r] = 0i32;
    }
    let weights = output * words;
    let mut i = UNIT_POS_X as usize;
    while i < words {
        let (a, b) = (one[weights + i], other[weights + i]);
        #[unroll]
        for r in 0..rows {
            let row = min(first + r, t - 1);
            let inputs = x[row * words + i];
            sums[r] = add(sums[r], inputs, a);
            sums[rows + r] = add(sums[rows + r], inputs, b);
        }
        i += lanes;
    }
    #[unroll]
    for r in 0..comptime!(2 * rows) {
        sums[r] = plane_sum(sums[r]);
    }
    sums
}

#[cube(launch_unchecked, create_dummy_kernel)]
pub(in crate::cube) fn linear_dp4a(
    x: &[Words],
    row_scales: &[f32],
    w: &[Words],
    scales: &[f32],
    bias: &[f32],
    residual: &[f32],
    out: &mut [f32],
    t: u32,
    n: u32,
    words: u32,
    #[comptime] rows: usize,
    #[comptime] epilogue: Int8Epilogue,
) {
    let (t, n, words) = (t as usize, n as usize, words as usize);
    let output = (CUBE_POS_X * CUBE_DIM_Y + UNIT_POS_Y) as usize;
    let first = CUBE_POS_Y as usize * rows;
    let sums = dots(x, w, first, min(output, n - 1), t, words, rows);
    if output < n && UNIT_POS_X == 0 {
        #[unroll]
        for r in 0..rows {
            let row = first + r;
            if row < t {
                out[row * n + output] =
                    finished(sums[r], row, output, n, row_scales, scales, bias, residual, epilogue);
            }
        }
    }
}

#[cube(launch_unchecked, create_dummy_kernel)]
pub(in crate::cube) fn swiglu_dp4a(
    x: &[Words],
    row_scales: &[f32],
    gate: &[Words],
    gate_scales: &[f32],
    gate_bias: &[f32],
    up: &[Words],
    up_scales: &[f32],
    up_bias: &[f32],
    out: &mut [f32],
    t: u32,
    n: u32,
    words: u32,
    #[comptime] rows: usize,
    #[comptime] biased: (bool, bool),
) {
    let (t, n, words) = (t as usize, n as usize, words as usize);
    let output = (CUBE_POS_X * CUBE_DIM_Y + UNIT_POS_Y) as usize;
    let first = CUBE_POS_Y as usize * rows;
    let sums = two_dots(x, gate, up, first, min(output, n - 1), t, words, rows);
    if output < n && UNIT_POS_X == 0 {
        #[unroll]
        for r in 0..rows {
            let row = first + r;
            if row < t {
                out[row * n + output] = gated(
                    sums[r],
                    sums[rows + r],
                    row,
                    output,
                    row_scales,
                    gate_scales,
                    up_scales,
                    gate_bias,
                    up_bias,
                    biased,
                );
            }
        }
    }
}

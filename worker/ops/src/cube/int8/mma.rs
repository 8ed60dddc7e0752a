//! Products for more rows: tiles of 16 outputs by 8 rows by 32 inputs on tensor cores.
//!
//! A sum of integers may be computed in any order, so the inputs of a tile need not be adjacent.
//! Each unit loads sixteen bytes at once, four words. The first and second word are its part of one
//! tile, the third and fourth its part of the next. Both operands come directly from memory,
//! without a shuffle through shared memory.

use cubecl::{
    cmma::{MatrixIdent, MmaDefinition},
    features::MmaConfig,
    ir::{ElemType, IntKind},
    prelude::*,
};

use super::{Int8Epilogue, Words, finished, gated};
use crate::cube::buffer::Buffer;

/// Number of outputs, rows and inputs of a tile.
const M: usize = 16;
const N: usize = 8;
const K: usize = 32;
/// Number of units of a plane, as a tile requires.
const PLANE: u32 = 32;
/// Number of planes of a cube, with different outputs and the same rows.
const PLANES: u32 = 4;

/// Numbers of tiles of a plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::cube) struct Shape {
    /// Number over outputs.
    pub(in crate::cube) m: usize,
    /// Number over rows.
    pub(in crate::cube) n: usize,
}

impl Shape {
    /// Returns the shape for a linear map of `t` rows, padded to tiles.
    pub(in crate::cube) fn for_linear(t: usize) -> Self {
        match t {
            0..=16 => Self { m: 1, n: 2 },
            17..=32 => Self { m: 2, n: 4 },
            _ => Self { m: 4, n: 8 },
        }
    }

    /// Returns the shape for two maps at once, whose sums share the registers.
    pub(in crate::cube) fn for_two(t: usize) -> Self {
        match t {
            0..=16 => Self { m: 1, n: 2 },
            17..=32 => Self { m: 1, n: 4 },
            _ => Self { m: 2, n: 8 },
        }
    }

    /// Returns the cubes of a launch, and their size.
    pub(super) fn launch(self, out: &Buffer) -> (CubeCount, CubeDim) {
        let (t, n) = (out.dim(0), out.dim(1));
        let outputs = n.div_ceil(self.m * M * PLANES as usize);
        let count = CubeCount::Static(outputs as u32, t.div_ceil(self.n * N) as u32, 1);
        (count, CubeDim::new_2d(PLANE, PLANES))
    }
}

/// Whether the device supports these tiles.
pub(super) fn is_supported(client: &Client) -> bool {
    let properties = client.properties();
    let (int8, int32) = (ElemType::Int(IntKind::I8), ElemType::Int(IntKind::I32));
    let tile = MmaConfig {
        a_type: int8,
        b_type: int8,
        cd_type: int32,
        m: M as u32,
        n: N as u32,
        k: K as u32,
    };
    properties.hardware.plane_size_max == PLANE
        && properties.hardware.plane_size_min == PLANE
        && properties.features.matmul.mma.contains(&tile)
}

/// A unit's four adjacent 8-bit inputs of a tile's operand.
type Four = Vector<i8, Const<4>>;
/// A unit's two adjacent sums of a tile.
type Two = Vector<i32, Const<2>>;

/// Returns sums of zero.
#[cube]
fn zeros(#[comptime] shape: Shape) -> Array<Two> {
    let count = comptime!(shape.m * shape.n * 2);
    let mut sums = Array::<Two>::new(count);
    #[unroll]
    for i in 0..count {
        sums[i] = Two::new(0i32);
    }
    sums
}

/// Loads a unit's words of `count` tiles of the matrix from row `first` on, with the inputs at
/// `word`.
#[cube]
fn read(
    from: &[Words],
    first: usize,
    rows: usize,
    words: usize,
    word: usize,
    #[comptime] count: usize,
) -> Array<Words> {
    let mut registers = Array::<Words>::new(count);
    #[unroll]
    for i in 0..count {
        // Rows past the end are replaced by the last one, and their sums are ignored.
        let row = min(first + i * 8, rows - 1);
        registers[i] = from[row * words + word];
    }
    registers
}

/// Adds the products of `a` and `b`.
#[cube]
fn add(a: &Array<Words>, b: &Array<Words>, sums: &mut Array<Two>, #[comptime] shape: Shape) {
    let tile = MmaDefinition::<i8, i8, i32>::new(M, N, K);
    #[unroll]
    for half in 0..2usize {
        #[unroll]
        for m in 0..shape.m {
            let mut left = Array::<Four>::new(4usize);
            // Rows r and r + 8 of the first word, then of the second.
            left[0] = Four::reinterpret(a[m * 2].extract(half * 2));
            left[1] = Four::reinterpret(a[m * 2 + 1].extract(half * 2));
            left[2] = Four::reinterpret(a[m * 2].extract(half * 2 + 1));
            left[3] = Four::reinterpret(a[m * 2 + 1].extract(half * 2 + 1));
            #[unroll]
            for n in 0..shape.n {
                let mut right = Array::<Four>::new(2usize);
                right[0] = Four::reinterpret(b[n].extract(half * 2));
                right[1] = Four::reinterpret(b[n].extract(half * 2 + 1));
                let at = comptime!((m * shape.n + n) * 2);
                let mut sum = Array::<Two>::new(2usize);
                sum[0] = sums[at];
                sum[1] = sums[at + 1];
                let sum = tile.execute(&left, &right, &sum);
                sums[at] = sum[0];
                sums[at + 1] = sum[1];
            }
        }
    }
}

/// Returns the output (within the plane) and the row (within the cube) of a unit's sum `i`, 0 to 3,
/// in tile `m`, `n`.
#[cube]
fn position(#[comptime] m: usize, #[comptime] n: usize, #[comptime] i: usize) -> (usize, usize) {
    let tile = MmaDefinition::<i8, i8, i32>::new(M, N, K);
    let (row, column) =
        tile.position_of_nth(UNIT_POS_X, i as u32, comptime!(MatrixIdent::Accumulator));
    (m * M + row as usize, n * N + column as usize)
}

#[cube(launch_unchecked, create_dummy_kernel)]
pub(in crate::cube) fn linear_mma(
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
    #[comptime] shape: Shape,
    #[comptime] epilogue: Int8Epilogue,
) {
    let (t, outputs, words) = (t as usize, n as usize, words as usize);
    let first_output = (CUBE_POS_X * PLANES + UNIT_POS_Y) as usize * shape.m * M;
    let first_row = CUBE_POS_Y as usize * shape.n * N;
    let (line, column) = ((UNIT_POS_X / 4) as usize, (UNIT_POS_X % 4) as usize);

    let mut sums = zeros(shape);
    let mut word = column;
    while word < words {
        let a = read(w, first_output + line, outputs, words, word, comptime!(shape.m * 2));
        let b = read(x, first_row + line, t, words, word, shape.n);
        add(&a, &b, &mut sums, shape);
        word += 4;
    }
    #[unroll]
    for m in 0..shape.m {
        #[unroll]
        for n in 0..shape.n {
            #[unroll]
            for i in 0..4usize {
                let (output, row) = position(m, n, i);
                let (output, row) = (first_output + output, first_row + row);
                if output < outputs && row < t {
                    let sum = sums[(m * shape.n + n) * 2 + i / 2].extract(i % 2);
                    out[row * outputs + output] = finished(
                        sum, row, output, outputs, row_scales, scales, bias, residual, epilogue,
                    );
                }
            }
        }
    }
}

#[cube(launch_unchecked, create_dummy_kernel)]
pub(in crate::cube) fn swiglu_mma(
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
    #[comptime] shape: Shape,
    #[comptime] biased: (bool, bool),
) {
    let (t, outputs, words) = (t as usize, n as usize, words as usize);
    let first_output = (CUBE_POS_X * PLANES + UNIT_POS_Y) as usize * shape.m * M;
    let first_row = CUBE_POS_Y as usize * shape.n * N;
    let (line, column) = ((UNIT_POS_X / 4) as usize, (UNIT_POS_X % 4) as usize);

    let mut gates = zeros(shape);
    let mut ups = zeros(shape);
    let mut word = column;
    while word < words {
        let b = read(x, first_row + line, t, words, word, shape.n);
        let a = read(gate, first_output + line, outputs, words, word, comptime!(shape.m * 2));
        add(&a, &b, &mut gates, shape);
        let a = read(up, first_output + line, outputs, words, word, comptime!(shape.m * 2));
        add(&a, &b, &mut ups, shape);
        word += 4;
    }
    #[unroll]
    for m in 0..shape.m {
        #[unroll]
        for n in 0..shape.n {
            #[unroll]
            for i in 0..4usize {
                let (output, row) = position(m, n, i);
                let (output, row) = (first_output + output, first_row + row);
                if output < outputs && row < t {
                    let at = (m * shape.n + n) * 2 + i / 2;
                    out[row * outputs + output] = gated(
                        gates[at].extract(i % 2),
                        ups[at].extract(i % 2),
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
}

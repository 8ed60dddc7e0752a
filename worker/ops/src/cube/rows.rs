//! Preparation of input rows for products: normalised, and quantised if the weights are in 8 bits.

use burn::tensor::DType;
use cubecl::prelude::*;

use super::{
    buffer::Buffer,
    math::{magnitude, round_to_byte},
    reduce,
};

/// Number of units that share a row.
pub(super) const UNITS: usize = 256;
/// Alignment in bytes of rows in 8 bits: what four lanes of a tensor core's tile load at once.
pub(super) const ALIGN: usize = 64;

/// Steps to apply to rows before a product.
pub(super) struct Prepare<'a> {
    /// Indices of the rows, `[m]`; `None` for all rows.
    pub(super) rows: Option<&'a Buffer>,
    /// Gain `[k]` and epsilon of the norm.
    pub(super) norm: Option<(&'a Buffer, f32)>,
}

/// Quantised rows.
pub(super) struct Quantized {
    /// `[t, padded / 4]`, four adjacent inputs in a word.
    pub(super) values: Buffer,
    /// `[t]`
    pub(super) scales: Buffer,
}

/// Steps that are enabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Steps {
    /// Whether rows are gathered.
    pub(super) gather: bool,
    /// Whether rows are normalised.
    pub(super) norm: bool,
}

impl Prepare<'_> {
    fn steps(&self) -> Steps {
        Steps { gather: self.rows.is_some(), norm: self.norm.is_some() }
    }

    /// Number of rows of `x [t, k]` in the output.
    fn count(&self, x: &Buffer) -> usize {
        self.rows.map_or(x.dim(0), |rows| rows.dim(0))
    }

    /// Returns the optional arguments. If absent, they are replaced by a buffer that is not read.
    fn args(&self, x: &Buffer) -> (BufferArg, BufferArg, f32) {
        let rows = self.rows.unwrap_or(x).arg();
        let (gain, epsilon) = self.norm.map_or((x, 0.0), |(gain, epsilon)| (gain, epsilon));
        (rows, gain.arg(), epsilon)
    }
}

/// Returns rows of `x [t, k]` in 8 bits.
pub(super) fn quantize(x: &Buffer, prepare: &Prepare) -> Quantized {
    let (t, k) = (prepare.count(x), x.dim(1));
    let words = k.next_multiple_of(ALIGN) / 4;
    let values = Buffer::empty(&x.0, [t, words], DType::I32);
    let scales = Buffer::empty(&x.0, [t], DType::F32);
    if t > 0 {
        let (rows, gain, epsilon) = prepare.args(x);
        // SAFETY: buffers have the sizes of their shapes, and `rows` are indices of rows of `x`.
        unsafe {
            quantize_rows::launch_unchecked(
                x.launcher(),
                CubeCount::Static(t as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                x.arg(),
                rows,
                gain,
                values.arg(),
                scales.arg(),
                k as u32,
                words as u32,
                epsilon,
                UNITS,
                prepare.steps(),
            );
        }
    }
    Quantized { values, scales }
}

/// Returns rows of `x [t, k]` as floats: `x` itself if there is nothing to do.
pub(super) fn prepare(x: &Buffer, prepare: &Prepare) -> Buffer {
    let steps = prepare.steps();
    if !steps.gather && !steps.norm {
        return x.clone();
    }
    let (t, k) = (prepare.count(x), x.dim(1));
    let out = Buffer::empty(&x.0, [t, k], DType::F32);
    if t > 0 {
        let (rows, gain, epsilon) = prepare.args(x);
        // SAFETY: buffers have the sizes of their shapes, and `rows` are indices of rows of `x`.
        unsafe {
            prepare_rows::launch_unchecked(
                x.launcher(),
                CubeCount::Static(t as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                x.arg(),
                rows,
                gain,
                out.arg(),
                k as u32,
                epsilon,
                UNITS,
                steps,
            );
        }
    }
    out
}

/// Returns the offset in `x [t, k]` of this cube's row.
#[cube]
fn start_of(rows: &[i32], k: usize, #[comptime] steps: Steps) -> usize {
    let mut row = CUBE_POS_X as usize;
    if comptime!(steps.gather) {
        row = rows[row] as usize;
    }
    row * k
}

/// Returns the factor of the norm for the row that begins at `start`.
#[cube]
fn norm_scale(
    x: &[f32],
    start: usize,
    k: usize,
    epsilon: f32,
    #[comptime] units: usize,
    #[comptime] steps: Steps,
) -> f32 {
    let mut scale = 1.0f32;
    if comptime!(steps.norm) {
        let mut squares = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < k {
            let value = x[start + i];
            squares = fma(value, value, squares);
            i += units;
        }
        let mean = reduce::sum(squares, units) / k as f32;
        scale = 1.0f32 / Sqrt::sqrt(mean + epsilon);
    }
    scale
}

/// Returns element `i` of the row, normalised.
#[cube]
fn element(
    x: &[f32],
    gain: &[f32],
    start: usize,
    i: usize,
    scale: f32,
    #[comptime] steps: Steps,
) -> f32 {
    if comptime!(steps.norm) { x[start + i] * scale * gain[i] } else { x[start + i] }
}

/// Quantises rows. Each cube handles one row.
#[cube(launch_unchecked, create_dummy_kernel)]
pub(in crate::cube) fn quantize_rows(
    x: &[f32],
    rows: &[i32],
    gain: &[f32],
    values: &mut [i32],
    scales: &mut [f32],
    k: u32,
    words: u32,
    epsilon: f32,
    #[comptime] units: usize,
    #[comptime] steps: Steps,
) {
    let (k, words) = (k as usize, words as usize);
    let start = start_of(rows, k, steps);
    let scale = norm_scale(x, start, k, epsilon, units, steps);
    let unit = UNIT_POS as usize;

    let mut peak = 0u32;
    let mut i = unit;
    while i < k {
        peak = max(peak, magnitude(element(x, gain, start, i, scale, steps)));
        i += units;
    }
    let largest = f32::reinterpret(reduce::largest(peak, units));
    if unit == 0 {
        scales[CUBE_POS_X as usize] = largest / 127.0f32;
    }

    let finer = 127.0f32 / largest;
    let mut word = unit;
    while word < words {
        let mut packed = 0u32;
        #[unroll]
        for j in 0..4usize {
            let i = word * 4 + j;
            if i < k {
                let value = element(x, gain, start, i, scale, steps);
                packed |= round_to_byte(value * finer) << (8 * j as u32);
            }
        }
        values[CUBE_POS_X as usize * words + word] = i32::reinterpret(packed);
        word += units;
    }
}

/// Gathers and normalises rows. Each cube handles one row.
#[cube(launch_unchecked, create_dummy_kernel)]
pub(in crate::cube) fn prepare_rows(
    x: &[f32],
    rows: &[i32],
    gain: &[f32],
    out: &mut [f32],
    k: u32,
    epsilon: f32,
    #[comptime] units: usize,
    #[comptime] steps: Steps,
) {
    let k = k as usize;
    let start = start_of(rows, k, steps);
    let scale = norm_scale(x, start, k, epsilon, units, steps);
    let mut i = UNIT_POS as usize;
    while i < k {
        out[CUBE_POS_X as usize * k + i] = element(x, gain, start, i, scale, steps);
        i += units;
    }
}

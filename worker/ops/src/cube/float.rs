//! Products in f32. A plane computes an output: its units sum every n-th input each, and their sums
//! are added at the end.
//!
//! The order of a sum depends on the number of inputs and on the device, never on the other rows.
//! burn's own products are faster for many rows, but the bits of a row depend on the batch.

use burn::tensor::DType;
use cubecl::prelude::*;

use super::{buffer::Buffer, math::silu};

/// Number of planes of a cube, each of which computes one output.
const PLANES: u32 = 4;
/// Number of rows that are multiplied with the weights at a time.
const ROWS: usize = 8;

/// Operation on finished products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Epilogue {
    /// None.
    None,
    /// Adds a residual.
    Residual,
    /// Multiplies by `silu` of the other operand.
    Gate,
}

/// `x * matrix^T (+ bias) (+ residual)`: `[t, k], [n, k] -> [t, n]`.
pub(super) fn linear(
    x: &Buffer,
    matrix: &Buffer,
    bias: Option<&Buffer>,
    residual: Option<&Buffer>,
) -> Buffer {
    let epilogue = if residual.is_some() { Epilogue::Residual } else { Epilogue::None };
    launch(x, matrix, bias, residual, epilogue)
}

/// `silu(x * gate^T) * (x * up^T)`: `[t, k], [n, k], [n, k] -> [t, n]`.
pub(super) fn swiglu(
    x: &Buffer,
    gate: (&Buffer, Option<&Buffer>),
    up: (&Buffer, Option<&Buffer>),
) -> Buffer {
    let gates = launch(x, gate.0, gate.1, None, Epilogue::None);
    launch(x, up.0, up.1, Some(&gates), Epilogue::Gate)
}

fn launch(
    x: &Buffer,
    matrix: &Buffer,
    bias: Option<&Buffer>,
    other: Option<&Buffer>,
    epilogue: Epilogue,
) -> Buffer {
    let (t, n, k) = (x.dim(0), matrix.dim(0), matrix.dim(1));
    let out = Buffer::empty(&x.0, [t, n], DType::F32);
    if t * n == 0 {
        return out;
    }
    let rows = t.next_power_of_two().min(ROWS);
    // SAFETY: buffers have the sizes of their shapes; the kernel skips rows and outputs past the
    // end.
    unsafe {
        linear_f32::launch_unchecked(
            x.launcher(),
            CubeCount::Static((n as u32).div_ceil(PLANES), t.div_ceil(rows) as u32, 1),
            CubeDim::new_2d(x.plane(), PLANES),
            x.arg(),
            matrix.arg(),
            bias.unwrap_or(x).arg(),
            other.unwrap_or(x).arg(),
            out.arg(),
            t as u32,
            n as u32,
            k as u32,
            rows,
            bias.is_some(),
            epilogue,
        );
    }
    out
}

#[cube(launch_unchecked, create_dummy_kernel)]
pub(in crate::cube) fn linear_f32(
    x: &[f32],
    w: &[f32],
    bias: &[f32],
    other: &[f32],
    out: &mut [f32],
    t: u32,
    n: u32,
    k: u32,
    #[comptime] rows: usize,
    #[comptime] biased: bool,
    #[comptime] epilogue: Epilogue,
) {
    let (t, n, k) = (t as usize, n as usize, k as usize);
    let output = (CUBE_POS_X * CUBE_DIM_Y + UNIT_POS_Y) as usize;
    let first = CUBE_POS_Y as usize * rows;
    let weights = min(output, n - 1) * k;
    let mut sums = Array::<f32>::new(rows);
    #[unroll]
    for r in 0..rows {
        sums[r] = 0.0f32;
    }
    let mut i = UNIT_POS_X as usize;
    while i < k {
        let weight = w[weights + i];
        #[unroll]
        for r in 0..rows {
            let row = min(first + r, t - 1);
            sums[r] = fma(x[row * k + i], weight, sums[r]);
        }
        i += CUBE_DIM_X as usize;
    }
    #[unroll]
    for r in 0..rows {
        let mut y = plane_sum(sums[r]);
        let row = first + r;
        if output < n && row < t && UNIT_POS_X == 0 {
            let at = row * n + output;
            if comptime!(biased) {
                y += bias[output];
            }
            if comptime!(epilogue == Epilogue::Residual) {
                y += other[at];
            }
            if comptime!(epilogue == Epilogue::Gate) {
                y *= silu(other[at]);
            }
            out[at] = y;
        }
    }
}

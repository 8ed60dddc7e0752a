//! Products in 8 bits: exact sums of integers, independent of the order of addition.
//!
//! [`dp4a`] reads each weight once for up to eight rows and is bound by memory bandwidth, as decode
//! is. [`mma`] uses tensor cores, for more rows.

pub(super) mod dp4a;
pub(super) mod mma;

use burn::tensor::DType;
use cubecl::prelude::*;

use super::{buffer::Buffer, math::silu, rows::Quantized};
use crate::fallback::GpuFeature;

/// Minimum number of rows for which tensor cores are faster.
const MMA_ROWS: usize = 9;

/// A matrix in 8 bits on the device.
#[derive(Clone)]
pub(super) struct Matrix {
    /// `[1, n, padded / 4]`, four adjacent inputs in a word.
    pub(super) values: Buffer,
    /// `[n]`
    pub(super) scales: Buffer,
}

impl Matrix {
    /// Number of words of a row.
    pub(super) fn words(&self) -> usize {
        self.values.len() / self.scales.len().max(1)
    }
}

/// Terms that are added to finished products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Int8Epilogue {
    /// Whether a bias is added.
    pub(super) bias: bool,
    /// Whether a residual is added.
    pub(super) residual: bool,
}

impl Int8Epilogue {
    pub(super) fn of(bias: Option<&Buffer>, residual: Option<&Buffer>) -> Self {
        Self { bias: bias.is_some(), residual: residual.is_some() }
    }
}

/// Whether tensor cores compute the products of `out [t, n]`.
fn on_tensor_cores(out: &Buffer) -> bool {
    out.dim(0) >= MMA_ROWS && GpuFeature::TensorCores.is_on() && mma::is_supported(out.client())
}

/// Launches a kernel of [`linear`]: they differ in how they are tiled.
macro_rules! launch_linear {
    ($kernel:path, $tiling:expr, $launch:expr, $x:ident, $matrix:ident, $bias:ident, $residual:ident, $out:ident) => {{
        use $kernel as kernel;
        let (count, dim) = $launch;
        // SAFETY: buffers have the sizes of their shapes; the kernels skip rows and outputs past
        // the end.
        unsafe {
            kernel::launch_unchecked(
                $out.launcher(),
                count,
                dim,
                $x.values.arg(),
                $x.scales.arg(),
                $matrix.values.arg(),
                $matrix.scales.arg(),
                $bias.unwrap_or(&$x.scales).arg(),
                $residual.unwrap_or(&$x.scales).arg(),
                $out.arg(),
                $out.dim(0) as u32,
                $out.dim(1) as u32,
                $x.values.dim(1) as u32 / 4,
                $tiling,
                Int8Epilogue::of($bias, $residual),
            );
        }
    }};
}

/// Launches a kernel of [`swiglu`]: they differ in how they are tiled.
macro_rules! launch_swiglu {
    ($kernel:path, $tiling:expr, $launch:expr, $x:ident, $gate:ident, $up:ident, $out:ident) => {{
        use $kernel as kernel;
        let (count, dim) = $launch;
        // SAFETY: as for `linear`.
        unsafe {
            kernel::launch_unchecked(
                $out.launcher(),
                count,
                dim,
                $x.values.arg(),
                $x.scales.arg(),
                $gate.0.values.arg(),
                $gate.0.scales.arg(),
                $gate.1.unwrap_or(&$x.scales).arg(),
                $up.0.values.arg(),
                $up.0.scales.arg(),
                $up.1.unwrap_or(&$x.scales).arg(),
                $out.arg(),
                $out.dim(0) as u32,
                $out.dim(1) as u32,
                $x.values.dim(1) as u32 / 4,
                $tiling,
                ($gate.1.is_some(), $up.1.is_some()),
            );
        }
    }};
}

/// `x * matrix^T (+ bias) (+ residual)`: `[t, k], [n, k] -> [t, n]`.
pub(super) fn linear(
    x: &Quantized,
    matrix: &Matrix,
    bias: Option<&Buffer>,
    residual: Option<&Buffer>,
) -> Buffer {
    let (t, n) = (x.scales.len(), matrix.scales.len());
    let out = Buffer::empty(&x.values.0, [t, n], DType::F32);
    if t * n > 0 {
        if on_tensor_cores(&out) {
            let shape = mma::Shape::for_linear(t);
            launch_linear!(
                mma::linear_mma,
                shape,
                shape.launch(&out),
                x,
                matrix,
                bias,
                residual,
                out
            );
        } else {
            let rows = dp4a::rows_at_once(t);
            let launch = dp4a::launch_shape(&out, rows);
            launch_linear!(dp4a::linear_dp4a, rows, launch, x, matrix, bias, residual, out);
        }
    }
    out
}

/// `silu(x * gate^T) * (x * up^T)`: `[t, k], [n, k], [n, k] -> [t, n]`.
pub(super) fn swiglu(
    x: &Quantized,
    gate: (&Matrix, Option<&Buffer>),
    up: (&Matrix, Option<&Buffer>),
) -> Buffer {
    let (t, n) = (x.scales.len(), gate.0.scales.len());
    let out = Buffer::empty(&x.values.0, [t, n], DType::F32);
    if t * n > 0 {
        if on_tensor_cores(&out) {
            let shape = mma::Shape::for_two(t);
            launch_swiglu!(mma::swiglu_mma, shape, shape.launch(&out), x, gate, up, out);
        } else {
            let rows = dp4a::rows_at_once(t);
            let launch = dp4a::launch_shape(&out, rows);
            launch_swiglu!(dp4a::swiglu_dp4a, rows, launch, x, gate, up, out);
        }
    }
    out
}

/// Four adjacent inputs in each of four words: the unit of loads.
type Words = Vector<i32, Const<4>>;

/// Scales a sum to an output, once and in this order.
#[cube]
fn scaled(sum: i32, row_scale: f32, scale: f32) -> f32 {
    f32::cast_from(sum) * row_scale * scale
}

/// Returns `scaled`, plus bias and residual.
#[cube]
fn finished(
    sum: i32,
    row: usize,
    output: usize,
    n: usize,
    row_scales: &[f32],
    scales: &[f32],
    bias: &[f32],
    residual: &[f32],
    #[comptime] epilogue: Int8Epilogue,
) -> f32 {
    let mut y = scaled(sum, row_scales[row], scales[output]);
    if comptime!(epilogue.bias) {
        y += bias[output];
    }
    if comptime!(epilogue.residual) {
        y += residual[row * n + output];
    }
    y
}

/// Returns `silu(gate) * up` of two sums.
#[cube]
fn gated(
    gate_sum: i32,
    up_sum: i32,
    row: usize,
    output: usize,
    row_scales: &[f32],
    gate_scales: &[f32],
    up_scales: &[f32],
    gate_bias: &[f32],
    up_bias: &[f32],
    #[comptime] biased: (bool, bool),
) -> f32 {
    let mut gate = scaled(gate_sum, row_scales[row], gate_scales[output]);
    if comptime!(biased.0) {
        gate += gate_bias[output];
    }
    let mut up = scaled(up_sum, row_scales[row], up_scales[output]);
    if comptime!(biased.1) {
        up += up_bias[output];
    }
    silu(gate) * up
}

//! Products with a weight matrix. The bits of a row do not depend on the number of rows.
//!
//! A thread takes some outputs and multiplies all rows with their weights, which stay in its cache
//! meanwhile.

use std::ops::Range;

use super::{
    PARALLEL_THRESHOLD,
    int4::{self, Strips},
    int8::{self, OUTPUTS, Rows, Tiles},
    isa::{Isa, Kernel},
    lanes::dot,
    pool::{Grid, pool},
    simd::Simd,
};
use crate::math::silu;

/// Number of outputs that a thread takes at a time.
const CHUNK: usize = 4 * OUTPUTS;
/// Number of rows that are multiplied with them at a time, so that their sums stay in the cache.
const ROWS: usize = 64;

/// Weights of a linear map.
#[derive(Clone, Copy)]
pub struct Weight<'a> {
    /// Matrix of the map.
    pub matrix: Matrix<'a>,
    /// Number of outputs.
    pub n: usize,
    /// `[n]`, added to the finished products, if the map has one.
    pub bias: Option<&'a [f32]>,
}

/// A matrix of `n` outputs by `k` inputs.
#[derive(Clone, Copy)]
pub enum Matrix<'a> {
    /// `[n, k]` in rows.
    Float(&'a [f32]),
    /// Tiles, and the scale of each output, `[n]`.
    Int8(Tiles<'a>, &'a [f32]),
    /// Strips, and the scale of each output, `[n]`.
    Int4(Strips<'a>, &'a [f32]),
}

/// Inputs of a linear map, `[t, k]`.
pub struct Inputs<'a> {
    isa: Isa,
    x: &'a [f32],
    k: usize,
    /// Inputs in 8 bits, if a weight is in 8 or 4 bits.
    rows: Option<Rows>,
}

impl<'a> Inputs<'a> {
    /// Prepares `x [t, k]` for products with `weights`.
    pub fn new(isa: Isa, x: &'a [f32], k: usize, weights: &[Weight]) -> Self {
        let float = |weight: &Weight| matches!(weight.matrix, Matrix::Float(_));
        let rows = (!weights.iter().all(float)).then(|| Rows::quantize(isa, x, k));
        Self { isa, x, k, rows }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.x.len() / self.k.max(1)
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of rows to multiply at a time: whole groups of rows in 8 bits.
    fn step(&self) -> usize {
        let group = self.rows.as_ref().map_or(1, Rows::group);
        (ROWS / group).max(1) * group
    }

    /// Computes `outputs` of `rows` by `weight`, into `panel [rows, outputs]`. `outputs` begins at
    /// a strip.
    fn panel(&self, weight: Weight, rows: Range<usize>, outputs: Range<usize>, panel: &mut [f32]) {
        match weight.matrix {
            Matrix::Float(matrix) => {
                let x = &self.x[rows.start * self.k..rows.end * self.k];
                let matrix = &matrix[outputs.start * self.k..outputs.end * self.k];
                self.isa.run(Dots { x, matrix, k: self.k, panel });
            }
            Matrix::Int8(tiles, scales) => {
                let products = |x: &Rows, strips, sums: &mut [i32]| {
                    int8::products(self.isa, x, rows.clone(), tiles, strips, sums);
                };
                self.scaled(products, scales, &rows, &outputs, panel);
            }
            Matrix::Int4(matrix, scales) => {
                let products = |x: &Rows, strips, sums: &mut [i32]| {
                    int4::products(self.isa, x, rows.clone(), matrix, strips, sums);
                };
                self.scaled(products, scales, &rows, &outputs, panel);
            }
        }
        if let Some(bias) = weight.bias {
            // Added to the finished sum, never as its initial value.
            for row in panel.chunks_exact_mut(outputs.len()) {
                for (y, bias) in row.iter_mut().zip(&bias[outputs.clone()]) {
                    *y += bias;
                }
            }
        }
    }

    /// Computes `products`, sums of integers `[rows, strips * OUTPUTS]`, and scales them.
    fn scaled(
        &self,
        products: impl FnOnce(&Rows, Range<usize>, &mut [i32]),
        scales: &[f32],
        rows: &Range<usize>,
        outputs: &Range<usize>,
        panel: &mut [f32],
    ) {
        let x = self.rows.as_ref().expect("inputs are quantised where a weight is");
        let strips = outputs.start / OUTPUTS..outputs.end.div_ceil(OUTPUTS);
        let mut sums = vec![0; rows.len() * strips.len() * OUTPUTS];
        products(x, strips, &mut sums);
        let scales = &scales[outputs.clone()];
        self.isa.run(Scale { sums: &sums, x, first: rows.start, scales, panel });
    }

    /// Calls `each` with ranges of rows and outputs that cover all of `[t, n]`.
    fn for_each_panel(&self, n: usize, each: impl Fn(Range<usize>, Range<usize>) + Sync) {
        let t = self.len();
        let chunk = |number: usize| {
            let outputs = number * CHUNK..((number + 1) * CHUNK).min(n);
            for first in (0..t).step_by(self.step()) {
                each(first..(first + self.step()).min(t), outputs.clone());
            }
        };
        let chunks = n.div_ceil(CHUNK);
        if t * n * self.k < PARALLEL_THRESHOLD {
            (0..chunks).for_each(chunk);
        } else {
            pool().run(chunks, chunk);
        }
    }
}

/// `x * weight^T`: `[t, k] -> [t, n]`.
pub fn linear(x: &Inputs, weight: Weight) -> Vec<f32> {
    let mut out = vec![0.0; x.len() * weight.n];
    let grid = Grid::new(&mut out, weight.n);
    x.for_each_panel(weight.n, |rows, outputs| {
        let mut panel = vec![0.0; rows.len() * outputs.len()];
        x.panel(weight, rows.clone(), outputs.clone(), &mut panel);
        for (row, y) in rows.zip(panel.chunks_exact(outputs.len())) {
            // SAFETY: each output of a row is visited once.
            unsafe { grid.part(row, outputs.clone()) }.copy_from_slice(y);
        }
    });
    out
}

/// `out + x * weight^T`, in place: `[t, k], [t, n] -> [t, n]`.
pub fn linear_add(x: &Inputs, weight: Weight, out: &mut [f32]) {
    let grid = Grid::new(out, weight.n);
    x.for_each_panel(weight.n, |rows, outputs| {
        let mut panel = vec![0.0; rows.len() * outputs.len()];
        x.panel(weight, rows.clone(), outputs.clone(), &mut panel);
        for (row, y) in rows.zip(panel.chunks_exact(outputs.len())) {
            // SAFETY: each output of a row is visited once.
            let out = unsafe { grid.part(row, outputs.clone()) };
            for (out, y) in out.iter_mut().zip(y) {
                *out += y;
            }
        }
    });
}

/// `silu(x * gate^T) * (x * up^T)`: `[t, k] -> [t, n]`.
pub fn swiglu(x: &Inputs, gate: Weight, up: Weight) -> Vec<f32> {
    let mut out = vec![0.0; x.len() * gate.n];
    let grid = Grid::new(&mut out, gate.n);
    x.for_each_panel(gate.n, |rows, outputs| {
        let mut gates = vec![0.0; rows.len() * outputs.len()];
        let mut ups = gates.clone();
        x.panel(gate, rows.clone(), outputs.clone(), &mut gates);
        x.panel(up, rows.clone(), outputs.clone(), &mut ups);
        x.isa.run(Gate { gates: &gates, ups: &mut ups });
        for (row, y) in rows.zip(ups.chunks_exact(outputs.len())) {
            // SAFETY: each output of a row is visited once.
            unsafe { grid.part(row, outputs.clone()) }.copy_from_slice(y);
        }
    });
    out
}

/// Returns the rows of `table [n, width]` with indices `ids`: `[t, width]`.
pub fn embed(ids: &[i32], table: Matrix, width: usize) -> Vec<f32> {
    let mut out = vec![0.0; ids.len() * width];
    let mut quantized = vec![0i8; width];
    for (id, out) in ids.iter().zip(out.chunks_exact_mut(width)) {
        let id = *id as usize;
        let scale = match table {
            Matrix::Float(values) => {
                out.copy_from_slice(&values[id * width..(id + 1) * width]);
                continue;
            }
            Matrix::Int8(tiles, scales) => {
                tiles.read_row(id, &mut quantized);
                scales[id]
            }
            Matrix::Int4(strips, scales) => {
                strips.read_row(id, &mut quantized);
                scales[id]
            }
        };
        for (out, value) in out.iter_mut().zip(&quantized) {
            *out = f32::from(*value) * scale;
        }
    }
    out
}

/// Computes some outputs of some rows: `panel [x / k, matrix / k]`.
struct Dots<'a> {
    x: &'a [f32],
    matrix: &'a [f32],
    k: usize,
    panel: &'a mut [f32],
}

impl Kernel for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        /// Number of rows that share one pass over an output's weights.
        const SHARED: usize = 4;
        let n = self.matrix.len() / self.k;
        let row = |i: usize| &self.x[i * self.k..(i + 1) * self.k];
        let rows = self.panel.len() / n;
        for (j, weights) in self.matrix.chunks_exact(self.k).enumerate() {
            let shared = rows / SHARED * SHARED;
            for i in (0..shared).step_by(SHARED) {
                let sums = dot(simd, [row(i), row(i + 1), row(i + 2), row(i + 3)], weights);
                for (r, sum) in sums.into_iter().enumerate() {
                    self.panel[(i + r) * n + j] = sum;
                }
            }
            for i in shared..rows {
                [self.panel[i * n + j]] = dot(simd, [row(i)], weights);
            }
        }
    }
}

/// Scales integer sums to outputs: `sum * scale of the row * scale of the output`, in this order.
struct Scale<'a> {
    /// `[rows, whole strips]`
    sums: &'a [i32],
    x: &'a Rows,
    first: usize,
    /// `[outputs]`
    scales: &'a [f32],
    /// `[rows, outputs]`
    panel: &'a mut [f32],
}

impl Kernel for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let n = self.scales.len();
        let sums = self.sums.chunks_exact(n.next_multiple_of(OUTPUTS));
        for (i, (out, sums)) in self.panel.chunks_exact_mut(n).zip(sums).enumerate() {
            let row_scale = self.x.scale(self.first + i);
            for ((out, sum), scale) in out.iter_mut().zip(sums).zip(self.scales) {
                *out = *sum as f32 * row_scale * scale;
            }
        }
    }
}

/// Replaces `ups` by `silu(gate) * up`.
struct Gate<'a> {
    gates: &'a [f32],
    ups: &'a mut [f32],
}

impl Kernel for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (up, gate) in self.ups.iter_mut().zip(self.gates) {
            *up *= silu(*gate);
        }
    }
}

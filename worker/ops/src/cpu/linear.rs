//! Products with a weight matrix, the same bits for a row at any number of rows.

use rayon::slice::ParallelSliceMut;

use super::{
    for_each,
    isa::{Isa, Kernel},
    lanes::dot,
};
use crate::math::silu;

/// Outputs that one task computes: their weights stay in the cache while all rows pass by.
const TASK: usize = 16;
/// Rows that share one pass over a weight row.
const ROWS: usize = 4;

/// A weight matrix, `[n, k]` in rows, and what is added to its products.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// `n * k` elements.
    pub data: &'a [f32],
    /// Inputs.
    pub k: usize,
    /// `n` elements, where there is a bias.
    pub bias: Option<&'a [f32]>,
}

impl Matrix<'_> {
    /// Outputs.
    pub fn n(&self) -> usize {
        self.data.len() / self.k
    }

    fn row(&self, j: usize) -> &[f32] {
        &self.data[j * self.k..(j + 1) * self.k]
    }

    /// Output `j` for every row of `x`. The bias comes on top of the finished sum, never into its lanes.
    fn column(&self, isa: Isa, x: &[f32], j: usize, out: &mut [f32]) {
        isa.run(Dots { x, weight: self.row(j), out });
        if let Some(bias) = self.bias {
            for out in out {
                *out += bias[j];
            }
        }
    }
}

/// `x * weight^T`: `[t, k] -> [t, n]`.
pub fn linear(isa: Isa, x: &[f32], weight: Matrix) -> Vec<f32> {
    columns(x, weight, |j, out| weight.column(isa, x, j, out))
}

/// `silu(x * gate^T) * (x * up^T)`: `[t, k] -> [t, n]`.
pub fn swiglu(isa: Isa, x: &[f32], gate: Matrix, up: Matrix) -> Vec<f32> {
    columns(x, gate, |j, out| {
        let mut ups = vec![0.0; out.len()];
        up.column(isa, x, j, &mut ups);
        gate.column(isa, x, j, out);
        isa.run(Gate { gates: out, ups: &ups });
    })
}

/// Fills `[t, n]`: `column` gets an output's index and its value for each row.
fn columns(x: &[f32], shape: Matrix, column: impl Fn(usize, &mut [f32]) + Sync + Send) -> Vec<f32> {
    let (t, n) = (x.len() / shape.k, shape.n());
    // By output first, so that each task owns a contiguous piece.
    let mut by_output = vec![0.0; n * t];
    let work = t * shape.data.len();
    for_each(by_output.par_chunks_mut(TASK * t.max(1)), work, |(task, piece)| {
        for (j, out) in piece.chunks_exact_mut(t).enumerate() {
            column(task * TASK + j, out);
        }
    });
    if t <= 1 { by_output } else { transpose(&by_output, t) }
}

/// `[n, t] -> [t, n]`.
fn transpose(from: &[f32], t: usize) -> Vec<f32> {
    let n = from.len() / t;
    let mut to = Vec::with_capacity(from.len());
    for i in 0..t {
        to.extend((0..n).map(|j| from[j * t + i]));
    }
    to
}

/// One output for every row.
struct Dots<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let k = self.weight.len();
        let row = |i: usize| &self.x[i * k..(i + 1) * k];
        let (groups, rest) = self.out.as_chunks_mut::<ROWS>();
        let first_of_rest = groups.len() * ROWS;
        for (g, out) in groups.iter_mut().enumerate() {
            let i = g * ROWS;
            *out = dot([row(i), row(i + 1), row(i + 2), row(i + 3)], self.weight);
        }
        for (r, out) in rest.iter_mut().enumerate() {
            [*out] = dot([row(first_of_rest + r)], self.weight);
        }
    }
}

/// Gates become `silu(gate) * up`.
struct Gate<'a> {
    gates: &'a mut [f32],
    ups: &'a [f32],
}

impl Kernel for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (gate, up) in self.gates.iter_mut().zip(self.ups) {
            *gate = silu(*gate) * up;
        }
    }
}

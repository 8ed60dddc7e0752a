//! How fast this machine multiplies: products with a matrix that nobody has to fetch from memory.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use burn::tensor::{Device, Tensor};

use super::int8::Int8;
use crate::ops::{self, Matrix, Weight};

/// Rows, and outputs and inputs of the matrix: in f32 it takes 4 MiB, of which each thread keeps near what it works on.
const ROWS: usize = 64;
const WIDTH: usize = 1024;
/// How long to try.
const TIME: Duration = Duration::from_millis(500);

/// Multiply-adds a second in f32 on all threads together: the best of half a second.
pub fn f32_rate() -> f64 {
    let device = Device::flex();
    rate(Matrix::float(values(), WIDTH, &device), &device)
}

/// The same in 8 bits, in which inputs are rounded as well.
pub fn int8_rate() -> f64 {
    let device = Device::flex();
    rate(Matrix::int8(Int8::quantize(&values(), WIDTH), WIDTH, &device), &device)
}

/// A matrix of small numbers, neither all alike nor zero.
fn values() -> Vec<f32> {
    (0..WIDTH * WIDTH).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect()
}

/// Multiply-adds a second with `matrix [WIDTH, WIDTH]`.
fn rate(matrix: Matrix, device: &Device) -> f64 {
    let weight = Weight::from(matrix);
    let ones = || Tensor::<2>::ones([ROWS, WIDTH], device);
    let once = || {
        let (x, residual) = (ones(), ones());
        let begun = Instant::now();
        black_box(ops::linear_add(x, weight.clone(), residual));
        begun.elapsed()
    };
    let (begun, mut best) = (Instant::now(), once());
    while begun.elapsed() < TIME {
        best = best.min(once());
    }
    (ROWS * WIDTH * WIDTH) as f64 / best.as_secs_f64()
}

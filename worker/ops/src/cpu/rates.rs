//! Arithmetic throughput of this machine: products with a matrix that fits in caches.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use burn::tensor::{Device, Tensor};

use super::int8::Int8;
use crate::ops::{self, Matrix, Weight};

/// Number of rows, and width of the square matrix. In f32 it takes 4 MiB, and each thread's part
/// stays in its cache.
const ROWS: usize = 64;
const WIDTH: usize = 1024;
/// Duration of the measurement.
const TIME: Duration = Duration::from_millis(500);

/// Measures multiply-adds per second in f32 on all threads together: the best of half a second.
pub fn f32_rate() -> f64 {
    let device = Device::flex();
    rate(Matrix::float(values(), WIDTH, &device), &device)
}

/// Same as [`f32_rate`] for 8 bits, including the quantisation of the inputs.
pub fn int8_rate() -> f64 {
    let device = Device::flex();
    rate(Matrix::int8(Int8::quantize(&values(), WIDTH), WIDTH, &device), &device)
}

/// Returns a matrix of small numbers, neither all equal nor zero.
fn values() -> Vec<f32> {
    (0..WIDTH * WIDTH).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect()
}

/// Measures multiply-adds per second with `matrix [WIDTH, WIDTH]`.
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

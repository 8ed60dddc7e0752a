//! How fast this machine multiplies: products of a matrix that no thread has to fetch from memory.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use burn::tensor::{Device, Tensor};

use crate::ops::{self, Weight};

/// Rows, outputs and inputs: a matrix of 4 MiB in f32, of which each thread keeps the part it works on near.
const ROWS: usize = 64;
const WIDTH: usize = 1024;
/// How long to try.
const TIME: Duration = Duration::from_millis(500);

/// Multiply-adds a second in f32 on all threads together: the best of half a second.
pub fn f32_rate() -> f64 {
    let device = Device::flex();
    let weight: Weight = Tensor::<2>::ones([WIDTH, WIDTH], &device).into();
    rate(&weight, &device)
}

/// The same in 8 bits; `None` as long as there are no such products.
///
/// With them this is [`rate`] of a weight in 8 bits.
pub fn int8_rate() -> Option<f64> {
    None
}

/// Multiply-adds a second with `weight [WIDTH, WIDTH]`.
fn rate(weight: &Weight, device: &Device) -> f64 {
    let x = || Tensor::<2>::ones([ROWS, WIDTH], device);
    let once = || {
        let (x, residual) = (x(), x());
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

//! Arithmetic throughput of this machine: products of a prompt of 512 tokens with a matrix of
//! TinyLlama's feed-forward network.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use super::{
    int8::{self, Int8, Tiles},
    isa::Isa,
    matmul::{Inputs, Matrix, Weight, linear_add},
    peak,
};

/// Number of rows, and of inputs and outputs of the matrix.
const ROWS: usize = 512;
const INPUTS: usize = 2048;
const OUTPUTS: usize = 5632;
/// Duration of a measurement.
const TIME: Duration = Duration::from_millis(500);

/// Multiply-adds per second on all threads together, and what instructions can do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// The instruction set.
    pub isa: Isa,
    /// Products, with the quantisation of inputs in 8 bits.
    pub products: f64,
    /// Operands in registers; `None` if the instruction set has no such instruction.
    pub peak: Option<f64>,
}

/// Measures products in f32 with the best instruction set.
pub fn f32_rate() -> Rate {
    let isa = Isa::best();
    let values = values();
    let weight = Weight { matrix: Matrix::Float(&values), n: OUTPUTS, bias: None };
    Rate { isa, products: products(isa, weight), peak: Some(peak::f32_peak(isa)) }
}

/// Measures products in 8 bits: with the best instruction set first, and with AVX-512 VNNI if the
/// best one is AMX.
pub fn int8_rates() -> Vec<Rate> {
    let int8 = Int8::quantize(&values(), INPUTS);
    let lines = int8::tiles::pack(&int8.values, INPUTS);
    let tiles = Tiles::new(bytemuck::cast_slice(&lines), INPUTS);
    let weight = Weight { matrix: Matrix::Int8(tiles, &int8.scales), n: OUTPUTS, bias: None };
    let best = Isa::best();
    let measured = |isa: &Isa| *isa == best || peak::int8_peak(*isa).is_some();
    let isas = Isa::available().into_iter().filter(measured);
    isas.map(|isa| Rate { isa, products: products(isa, weight), peak: peak::int8_peak(isa) })
        .collect()
}

/// Returns a matrix of small numbers, neither all equal nor zero.
fn values() -> Vec<f32> {
    (0..OUTPUTS * INPUTS).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect()
}

/// Measures multiply-adds per second of products with `weight`: the best of some.
fn products(isa: Isa, weight: Weight) -> f64 {
    let x = vec![1.0; ROWS * INPUTS];
    let mut out = vec![0.0; ROWS * OUTPUTS];
    let mut once = || {
        let begun = Instant::now();
        linear_add(&Inputs::new(isa, &x, INPUTS, &[weight]), weight, black_box(&mut out));
        begun.elapsed()
    };
    let (begun, mut best) = (Instant::now(), once());
    while begun.elapsed() < TIME {
        best = best.min(once());
    }
    (ROWS * INPUTS * OUTPUTS) as f64 / best.as_secs_f64()
}

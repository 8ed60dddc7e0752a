//! Self test of a GPU before it serves: products on tensor cores must equal those without them, bit
//! for bit.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
};

use burn::tensor::{Device, Tensor};

use crate::{
    check::numbers,
    cpu::int8::Int8,
    fallback::GpuFeature,
    ops::{self, Matrix, Norm, Weight},
};

/// Numbers of inputs and outputs: some tiles, and part of another.
const INPUTS: usize = 192;
const OUTPUTS: usize = 70;
/// Numbers of rows that use each shape of tiles.
const ROWS: [usize; 3] = [16, 24, 40];

/// Disables tensor cores if their results on `device` differ from those without them.
pub(crate) fn tensor_cores(device: &Device) {
    // One test at a time: half of it runs with tensor cores disabled in the whole process.
    static TEST: Mutex<()> = Mutex::new(());
    let _test = TEST.lock().unwrap_or_else(PoisonError::into_inner);
    if !GpuFeature::TensorCores.is_on() {
        return;
    }
    let computed = catch_unwind(AssertUnwindSafe(|| {
        let with = products(device)?;
        GpuFeature::TensorCores.without(|| products(device)).map(|without| (with, without))
    }));
    let verdict = match computed {
        Ok(Ok((with, without))) => compare(&with, &without),
        Ok(Err(reason)) => Err(reason),
        Err(_) => Err("a panic".into()),
    };
    if let Err(reason) = verdict {
        GpuFeature::TensorCores.failed(&reason);
    }
}

/// Result of an operation: its name, its number of rows, and the bits of its output.
type Product = (&'static str, usize, Vec<u32>);

/// Runs every kind of product for each number of rows.
fn products(device: &Device) -> Result<Vec<Product>, String> {
    let gain = ops::floats(numbers(INPUTS, 1), [INPUTS], device);
    let norm = Norm { gain, epsilon: 1e-5 };
    let map = |seed| {
        let values = Int8::quantize(&numbers(OUTPUTS * INPUTS, seed), INPUTS);
        let bias = ops::floats(numbers(OUTPUTS, seed + 1), [OUTPUTS], device);
        Weight { matrix: Matrix::int8(values, INPUTS, device), bias: Some(bias) }
    };
    let (gate, up) = (map(2), map(4));
    let mut products = Vec::new();
    for rows in ROWS {
        let x = ops::floats(numbers(rows * INPUTS, 6), [rows, INPUTS], device);
        let residual = ops::floats(numbers(rows * OUTPUTS, 7), [rows, OUTPUTS], device);
        let sum = ops::linear_add(x.clone(), gate.clone(), residual);
        products.push(("linear", rows, bits(sum)?));
        let gated = ops::swiglu(x, norm.clone(), gate.clone(), up.clone());
        products.push(("swiglu", rows, bits(gated)?));
    }
    Ok(products)
}

fn bits(x: Tensor<2>) -> Result<Vec<u32>, String> {
    let data = x.try_into_data().map_err(|error| error.to_string())?;
    Ok(data.iter::<f32>().map(f32::to_bits).collect())
}

fn compare(with: &[Product], without: &[Product]) -> Result<(), String> {
    let wrong = with.iter().zip(without).find(|(with, without)| with != without);
    match wrong {
        None => Ok(()),
        Some(((name, rows, _), _)) => {
            Err(format!("{name} of {rows} rows has other results on tensor cores"))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn one_wrong_bit_is_found_and_named() {
        let right = products(&Device::flex()).unwrap();
        assert_eq!(compare(&right, &products(&Device::flex()).unwrap()), Ok(()));
        let mut wrong = right.clone();
        wrong[3].2[77] ^= 1;
        let reason = compare(&wrong, &right).err().unwrap();
        assert_eq!(reason, "swiglu of 24 rows has other results on tensor cores");
    }
}

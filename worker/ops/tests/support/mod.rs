//! Inputs of operations, created on the CPU and copied to the device under test.

#[path = "../../../../shared/tests/support/skip.rs"]
mod skip;

use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use stoker_ops::{
    Cache, KV_BLOCK, Tokens,
    cpu::{int4::Int4, int8::Int8},
    ops::{HeadNorm, Matrix, Norm, Weight},
};

/// Returns the device of the references.
pub(crate) fn cpu() -> Device {
    Device::flex()
}

/// Returns the devices under test: the CPU, and the GPU that STOKER_TEST_DEVICE names, or else every
/// kind that this binary was built for.
pub(crate) fn devices() -> Vec<Device> {
    type Open = fn() -> Device;
    let built: &[(&str, Open)] = &[
        ("cpu", cpu),
        #[cfg(feature = "wgpu")]
        ("wgpu", || Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "cuda")]
        ("cuda", || Device::cuda(0)),
    ];
    let named = std::env::var("STOKER_TEST_DEVICE").ok();
    let is_tested =
        |kind: &str| kind == "cpu" || named.as_deref().is_none_or(|name| name.starts_with(kind));
    built.iter().filter(|(kind, _)| is_tested(kind)).map(|(_, open)| open()).collect()
}

/// Whether `device` supports half precision. Some devices do not; then the test reports that it
/// skips this part. The CPU must support it.
pub(crate) fn has_half_precision(device: &Device) -> bool {
    let has = device.supports_dtype(DType::F16);
    if !has {
        assert_ne!(*device, cpu(), "the CPU has half precision");
        skip::skip(format_args!("{device:?} has no half precision"));
    }
    has
}

pub(crate) fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &cpu())
}

pub(crate) fn ints<const D: usize>(data: Vec<i32>, shape: [usize; D]) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(data, shape), (&cpu(), DType::I32))
}

/// Copies to a device.
pub(crate) trait On {
    fn on(&self, device: &Device) -> Self;
}

impl<const D: usize> On for Tensor<D> {
    fn on(&self, device: &Device) -> Self {
        Tensor::from_data(self.to_data(), (device, self.dtype()))
    }
}

impl<const D: usize> On for Tensor<D, Int> {
    fn on(&self, device: &Device) -> Self {
        Tensor::from_data(self.to_data(), (device, self.dtype()))
    }
}

impl On for Norm {
    fn on(&self, device: &Device) -> Self {
        Self { gain: self.gain.on(device), epsilon: self.epsilon }
    }
}

impl On for HeadNorm {
    fn on(&self, device: &Device) -> Self {
        let (query, key) = (self.query.on(device), self.key.on(device));
        Self { query, key, epsilon: self.epsilon }
    }
}

impl On for Cache {
    fn on(&self, device: &Device) -> Self {
        Self { keys: self.keys.on(device), values: self.values.on(device) }
    }
}

impl On for Tokens {
    fn on(&self, device: &Device) -> Self {
        Self {
            positions: self.positions.on(device),
            slots: self.slots.on(device),
            rows: self.rows.on(device),
            tables: self.tables.on(device),
        }
    }
}

/// Format of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Float,
    Int8,
    Int4,
}

impl Format {
    pub(crate) const ALL: [Self; 3] = [Self::Float, Self::Int8, Self::Int4];
}

/// A matrix of `k` inputs, not on a device yet.
pub(crate) struct Values {
    pub(crate) format: Format,
    pub(crate) values: Vec<f32>,
    pub(crate) k: usize,
}

impl Values {
    pub(crate) fn on(&self, device: &Device) -> Matrix {
        match self.format {
            Format::Float => Matrix::float(self.values.clone(), self.k, device),
            Format::Int8 => Matrix::int8(Int8::quantize(&self.values, self.k), self.k, device),
            Format::Int4 => Matrix::int4(Int4::quantize(&self.values, self.k), self.k, device),
        }
    }
}

/// A linear map, not on a device yet.
pub(crate) struct Map {
    pub(crate) matrix: Values,
    pub(crate) bias: Option<Tensor<1>>,
}

impl Map {
    pub(crate) fn on(&self, device: &Device) -> Weight {
        let bias = self.bias.as_ref().map(|bias| bias.on(device));
        Weight { matrix: self.matrix.on(device), bias }
    }
}

/// Returns sequences with `lengths` new tokens each after `cached` old ones, in shuffled blocks.
pub(crate) fn tokens(lengths: &[usize], cached: &[usize]) -> (Tokens, usize) {
    let needed: Vec<usize> =
        lengths.iter().zip(cached).map(|(l, c)| (l + c).div_ceil(KV_BLOCK)).collect();
    let width = needed.iter().copied().max().unwrap_or(1);
    let total: usize = needed.iter().sum::<usize>() + 3;
    // Blocks are allocated from the end, so that neither order nor start is trivial.
    let mut free: Vec<i32> = (0..total as i32).collect();
    let (mut positions, mut slots, mut rows) = (vec![], vec![], vec![]);
    let mut tables = vec![0; lengths.len() * width];
    for (s, (length, cached)) in lengths.iter().zip(cached).enumerate() {
        for i in 0..needed[s] {
            tables[s * width + i] = free.pop().unwrap();
        }
        for p in *cached..cached + length {
            positions.push(p as i32);
            rows.push(s as i32);
            let block = tables[s * width + p / KV_BLOCK] as usize;
            slots.push((block * KV_BLOCK + p % KV_BLOCK) as i32);
        }
    }
    let t = positions.len();
    let tokens = Tokens {
        positions: ints(positions, [t]),
        slots: ints(slots, [t]),
        rows: ints(rows, [t]),
        tables: ints(tables, [lengths.len(), width]),
    };
    (tokens, total)
}

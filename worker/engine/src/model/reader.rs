//! Reads tensors by name for the modules: reads, quantises, hashes and packs them.

use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor, TensorData};
use stoker_ops::{
    cpu::int8::{Int8, MAX_INPUTS},
    int4::Int4,
    ops::Matrix,
};

use super::{LoadProgress, Quantization, digest::Digest, quantization::MatrixFormat};
use crate::weights::{ModelFiles, ReadTimes, WeightsError};

/// Time that each stage of loading took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadTimings {
    /// Reading files and decoding their values: the sum over all threads, divided by their number.
    pub read: Duration,
    /// Quantising: the sum over all threads, divided by their number.
    pub quantize: Duration,
    /// Packing weights into the device's layout.
    pub pack: Duration,
    /// Hashing weights for the digest.
    pub digest: Duration,
    /// Wall time of the whole load.
    pub total: Duration,
}

pub(super) struct Reader<'a> {
    pub(super) files: &'a ModelFiles,
    pub(super) device: &'a Device,
    pub(super) quantization: Quantization,
    pub(super) digest: Digest,
    pub(super) timings: LoadTimings,
    pub(super) progress: LoadProgress,
    pub(super) report: &'a mut dyn FnMut(LoadProgress),
}

impl Reader<'_> {
    /// Reads matrices of a layer, of `inputs` columns, stacked by rows. Their shapes were checked
    /// when the files were opened.
    pub(super) fn matrix(
        &mut self,
        names: &[String],
        inputs: usize,
    ) -> Result<Matrix, WeightsError> {
        self.matrix_as(self.quantization.layers(), names, inputs)
    }

    /// Reads an embedding table or a head, of `inputs` columns.
    pub(super) fn table(&mut self, name: &str, inputs: usize) -> Result<Matrix, WeightsError> {
        self.matrix_as(self.quantization.tables(), &[name.to_owned()], inputs)
    }

    fn matrix_as(
        &mut self,
        format: MatrixFormat,
        names: &[String],
        inputs: usize,
    ) -> Result<Matrix, WeightsError> {
        match format {
            MatrixFormat::Int8 if inputs <= MAX_INPUTS => {
                let mut all = Int8 { values: Vec::new(), scales: Vec::new() };
                for name in names {
                    let part = self.part(name, |files| files.read_int8(name))?;
                    self.hash(|digest| digest.int8(name, &part));
                    append(&mut all, part);
                }
                Ok(self.pack(|device| Matrix::int8(all, inputs, device)))
            }
            MatrixFormat::Int4 if inputs <= MAX_INPUTS => {
                let multiplied = Int8 { values: Vec::new(), scales: Vec::new() };
                let mut all = Int4 { multiplied, multipliers: Vec::new() };
                for name in names {
                    let part = self.part(name, |files| files.read_int4(name))?;
                    self.hash(|digest| digest.int8(name, &part.multiplied));
                    append(&mut all.multiplied, part.multiplied);
                    all.multipliers.extend(part.multipliers);
                }
                Ok(self.pack(|device| Matrix::int4(all, inputs, device)))
            }
            MatrixFormat::Float | MatrixFormat::Int8 | MatrixFormat::Int4 => {
                if format != MatrixFormat::Float {
                    let tensor = names.first();
                    tracing::warn!(
                        ?tensor,
                        inputs,
                        MAX_INPUTS,
                        "too many inputs to quantise: the matrix stays in f32"
                    );
                }
                let values = self.floats(names)?;
                Ok(self.pack(|device| Matrix::float(values, inputs, device)))
            }
        }
    }

    /// Reads and quantises one of a matrix's tensors.
    fn part<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&ModelFiles) -> Result<(T, ReadTimes), WeightsError>,
    ) -> Result<T, WeightsError> {
        let (part, times) = read(self.files)?;
        self.timings.read += times.read;
        self.timings.quantize += times.quantize;
        self.loaded(name);
        Ok(part)
    }

    /// Reads vectors and concatenates them.
    pub(super) fn vector(&mut self, names: &[String]) -> Result<Tensor<1>, WeightsError> {
        let values = self.floats(names)?;
        let shape = [values.len()];
        Ok(Tensor::from_data(TensorData::new(values, shape), self.device))
    }

    fn floats(&mut self, names: &[String]) -> Result<Vec<f32>, WeightsError> {
        let mut all = Vec::new();
        for name in names {
            let begun = Instant::now();
            let part = self.files.read_f32(name)?;
            self.timings.read += begun.elapsed();
            self.hash(|digest| digest.tensor(name, &part));
            self.loaded(name);
            if all.is_empty() {
                all = part;
            } else {
                all.extend(part);
            }
        }
        Ok(all)
    }

    fn pack(&mut self, pack: impl FnOnce(&burn::tensor::Device) -> Matrix) -> Matrix {
        let begun = Instant::now();
        let matrix = pack(self.device);
        self.timings.pack += begun.elapsed();
        matrix
    }

    fn hash(&mut self, hash: impl FnOnce(&mut Digest)) {
        let begun = Instant::now();
        hash(&mut self.digest);
        self.timings.digest += begun.elapsed();
    }

    fn loaded(&mut self, name: &str) {
        self.progress.done += self.files.stored_bytes(name);
        (self.report)(self.progress);
    }
}

/// Appends rows, without a copy of the first ones.
fn append(all: &mut Int8, part: Int8) {
    if all.values.is_empty() {
        *all = part;
    } else {
        all.values.extend(part.values);
        all.scales.extend(part.scales);
    }
}

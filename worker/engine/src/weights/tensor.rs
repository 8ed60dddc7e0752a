//! Location of a tensor in its file, and reads into the canonical layout.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rayon::{
    iter::{IndexedParallelIterator, ParallelIterator},
    slice::ParallelSliceMut,
};
use stoker_ops::{
    cpu::{int4, int8},
    int4::{GROUP, Int4},
    int8::Int8,
};

use super::decode::{decode_row, first_non_finite};
use super::dequantize::q4_0_steps;
use super::{Dtype, Source, WeightsError};

/// Approximate number of bytes of rows to read at a time, so that a tensor is never in memory
/// twice.
const PIECE_BYTES: usize = 1 << 20;

/// Description of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The canonical name, for example `model.layers.3.self_attn.q_proj.weight`.
    pub name: String,
    /// Element type in the file.
    pub dtype: Dtype,
    /// Dimensions, outermost first: `[out, in]` for a matrix, `[len]` for a vector.
    pub shape: Vec<usize>,
}

/// A tensor's stored bytes, with rows in canonical order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawTensor {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Concatenated rows, each of whole blocks of `dtype`.
    pub bytes: Vec<u8>,
}

/// Order in which the rows of a matrix are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowOrder {
    /// Canonical order.
    Canonical,
    /// Within each head of `head_dim` rows, the two rotary halves alternate: 0, d/2, 1, d/2 + 1,
    /// ...
    Interleaved { head_dim: usize },
}

impl RowOrder {
    /// Returns the canonical index of a stored row.
    fn canonical(self, stored: usize) -> usize {
        match self {
            Self::Canonical => stored,
            Self::Interleaved { head_dim } => {
                let (head, row) = (stored / head_dim, stored % head_dim);
                head * head_dim + row % 2 * (head_dim / 2) + row / 2
            }
        }
    }
}

/// Time to read a tensor: the sum over all threads, divided by their number.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadTimes {
    /// Reading bytes and decoding their values.
    pub read: Duration,
    /// Quantising.
    pub quantize: Duration,
}

impl ReadTimes {
    fn add(self, other: Self) -> Result<Self, WeightsError> {
        let (read, quantize) = (self.read + other.read, self.quantize + other.quantize);
        Ok(Self { read, quantize })
    }

    fn per_thread(self) -> Self {
        let threads = rayon::current_num_threads() as u32;
        Self { read: self.read / threads, quantize: self.quantize / threads }
    }
}

/// A row of a matrix.
struct Row<'a> {
    /// Its bytes in the file.
    stored: &'a [u8],
    /// Its decoded elements.
    values: &'a [f32],
}

/// A tensor and its location in a file. Its extent is verified on creation.
#[derive(Debug, Clone)]
pub(super) struct StoredTensor {
    pub(super) info: TensorInfo,
    /// The name in the file, if it is not the canonical one.
    stored_name: Option<String>,
    source: Arc<Source>,
    /// Byte offset in the file.
    offset: u64,
    rows: RowOrder,
    num_rows: usize,
    /// Number of elements in a row.
    row_len: usize,
    /// Size of a stored row in bytes.
    row_bytes: usize,
}

impl StoredTensor {
    /// Creates a tensor at `offset`, if the file holds all of it.
    pub(super) fn new(
        info: TensorInfo,
        source: Arc<Source>,
        offset: u64,
    ) -> Result<Self, WeightsError> {
        let TensorInfo { name, dtype, shape } = &info;
        let too_large = || source.malformed(name, format!("shape {shape:?} is too large"));
        let (row_len, outer) = match shape.split_last() {
            Some((row_len, outer)) => (*row_len, outer),
            None => (1, &[][..]),
        };
        let num_rows = outer
            .iter()
            .try_fold(1, |n: usize, dim| n.checked_mul(*dim))
            .filter(|n| n.checked_mul(row_len).is_some())
            .ok_or_else(too_large)?;
        let block = dtype.block_len();
        if !row_len.is_multiple_of(block) {
            let reason =
                format!("rows of {row_len} elements are not whole {dtype} blocks of {block}");
            return Err(source.malformed(name, reason));
        }
        let row_bytes = dtype.row_bytes(row_len).ok_or_else(too_large)?;
        let bytes = num_rows.checked_mul(row_bytes).ok_or_else(too_large)?;
        source.check(offset, bytes as u64, name)?;
        let (rows, stored_name) = (RowOrder::Canonical, None);
        Ok(Self { offset, rows, num_rows, row_len, row_bytes, source, info, stored_name })
    }

    /// Returns the tensor under its canonical name. Its rows are put in order when they are read.
    ///
    /// A vector in another order is read as rows of one element, which block types do not allow.
    pub(super) fn renamed(mut self, name: String, rows: RowOrder) -> Result<Self, WeightsError> {
        if name != self.info.name {
            let stored = std::mem::replace(&mut self.info.name, name);
            self.stored_name.get_or_insert(stored);
        }
        self.rows = rows;
        if let (RowOrder::Interleaved { .. }, [len]) = (rows, self.info.shape.as_slice()) {
            let dtype = self.info.dtype;
            let Some(bytes) = dtype.row_bytes(1) else {
                let subject = format!("vector {} of type", self.name_in_file());
                return Err(self.source.unsupported(subject, dtype, "F32, F16, BF16"));
            };
            (self.num_rows, self.row_len, self.row_bytes) = (*len, 1, bytes);
        }
        Ok(self)
    }

    /// Name of the file that contains it.
    pub(super) fn file(&self) -> &str {
        self.source.name()
    }

    /// Its name in this file.
    pub(super) fn name_in_file(&self) -> &str {
        self.stored_name.as_deref().unwrap_or(&self.info.name)
    }

    /// Returns an error about this tensor.
    pub(super) fn malformed(&self, reason: impl Into<String>) -> WeightsError {
        self.source.malformed(self.name_in_file(), reason)
    }

    /// Fails if the tensor's shape is not the one that the configuration requires.
    pub(super) fn check_shape(&self, expected: &[usize]) -> Result<(), WeightsError> {
        if self.info.shape == expected {
            return Ok(());
        }
        Err(WeightsError::WrongShape {
            file: self.source.name().to_owned(),
            tensor: self.name_in_file().to_owned(),
            actual: self.info.shape.clone(),
            expected: expected.to_vec(),
        })
    }

    /// Whether both tensors store the same bytes of the same type in the same shape.
    pub(super) fn stores_same_bytes(&self, other: &Self) -> Result<bool, WeightsError> {
        if self.info.dtype != other.info.dtype || self.info.shape != other.info.shape {
            return Ok(false);
        }
        let (mine, theirs) = (self.byte_range(), other.byte_range());
        for start in mine.clone().step_by(PIECE_BYTES) {
            let len = (mine.end - start).min(PIECE_BYTES as u64);
            let left = self.source.read(start, len, self.name_in_file())?;
            let start = theirs.start + (start - mine.start);
            if left != other.source.read(start, len, other.name_in_file())? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Byte range in the file.
    pub(super) fn byte_range(&self) -> std::ops::Range<u64> {
        self.offset..self.offset + (self.num_rows * self.row_bytes) as u64
    }

    /// Reads the tensor as f32, row-major. Fails if an element is not finite.
    pub(super) fn read_f32(&self) -> Result<Vec<f32>, WeightsError> {
        let mut values = vec![0.0; self.num_rows * self.row_len];
        let rows = self.rows_in_piece();
        let pieces = values.par_chunks_mut((rows * self.row_len).max(1));
        pieces.enumerate().try_for_each(|(piece, values)| {
            let bytes = self.read_piece(piece * rows, values.len() / self.row_len.max(1))?;
            self.decode_piece(piece * rows, &bytes, values)
        })?;
        Ok(self.in_order(values, self.row_len))
    }

    /// Reads the tensor in 8 bits with a scale for each row. Fails if an element is not finite. It
    /// is never in memory as f32.
    pub(super) fn read_int8(&self) -> Result<(Int8, ReadTimes), WeightsError> {
        let mut values = vec![0; self.num_rows * self.row_len];
        let mut scales = vec![0.0; self.num_rows];
        let rows = self.rows_in_piece();
        let times = values
            .par_chunks_mut((rows * self.row_len).max(1))
            .zip(scales.par_chunks_mut(rows))
            .enumerate()
            .map(|(piece, (values, scales))| {
                self.round_piece(piece * rows, values, scales, |row, to| {
                    int8::quantize::quantize_row(row.values, to)
                })
            })
            .try_reduce(ReadTimes::default, ReadTimes::add)?;
        let values = self.in_order(values, self.row_len);
        let scales = self.in_order(scales, 1);
        Ok((Int8 { values, scales }, times.per_thread()))
    }

    /// Same in 4 bits. Rows of `Q4_0` keep their steps.
    pub(super) fn read_int4(&self) -> Result<(Int4, ReadTimes), WeightsError> {
        let groups = self.row_len.div_ceil(GROUP);
        let mut values = vec![0; self.num_rows * self.row_len];
        let mut scales = vec![0.0; self.num_rows];
        let mut multipliers = vec![0; self.num_rows * groups];
        let rows = self.rows_in_piece();
        let times = values
            .par_chunks_mut((rows * self.row_len).max(1))
            .zip(scales.par_chunks_mut(rows))
            .zip(multipliers.par_chunks_mut((rows * groups).max(1)))
            .enumerate()
            .map(|(piece, ((values, scales), multipliers))| {
                let mut multipliers = multipliers.chunks_exact_mut(groups);
                self.round_piece(piece * rows, values, scales, |row, to| {
                    let multipliers = multipliers.next().unwrap_or_default();
                    if self.info.dtype == Dtype::Q4_0 {
                        let (steps, scales) = q4_0_steps(row.stored);
                        int4::quantize::round_scales(&steps, &scales, to, multipliers)
                    } else {
                        int4::quantize::quantize_row(row.values, to, multipliers)
                    }
                })
            })
            .try_reduce(ReadTimes::default, ReadTimes::add)?;
        let values = self.in_order(values, self.row_len);
        let scales = self.in_order(scales, 1);
        let multipliers = self.in_order(multipliers, groups);
        Ok((Int4 { multiplied: Int8 { values, scales }, multipliers }, times.per_thread()))
    }

    /// Reads rows from row `first` on, and rounds each: `round` writes its values and returns its
    /// scale.
    fn round_piece(
        &self,
        first: usize,
        values: &mut [i8],
        scales: &mut [f32],
        mut round: impl FnMut(Row, &mut [i8]) -> f32,
    ) -> Result<ReadTimes, WeightsError> {
        let begun = Instant::now();
        let bytes = self.read_piece(first, scales.len())?;
        let mut floats = vec![0.0; values.len()];
        self.decode_piece(first, &bytes, &mut floats)?;
        let read = begun.elapsed();
        let rows = bytes.chunks_exact(self.row_bytes).zip(floats.chunks_exact(self.row_len));
        let to = values.chunks_exact_mut(self.row_len).zip(scales);
        for ((stored, values), (to, scale)) in rows.zip(to) {
            *scale = round(Row { stored, values }, to);
        }
        Ok(ReadTimes { read, quantize: begun.elapsed() - read })
    }

    /// Number of rows to read at a time.
    fn rows_in_piece(&self) -> usize {
        (PIECE_BYTES / self.row_bytes.max(1)).clamp(1, self.num_rows.max(1))
    }

    /// Reads the stored bytes of `rows` rows from row `first` on.
    fn read_piece(&self, first: usize, rows: usize) -> Result<Vec<u8>, WeightsError> {
        let mut bytes = vec![0; rows * self.row_bytes];
        let offset = self.offset + (first * self.row_bytes) as u64;
        self.source.read_into(&mut bytes, offset, self.name_in_file())?;
        Ok(bytes)
    }

    /// Decodes stored rows from row `first` on.
    fn decode_piece(
        &self,
        first: usize,
        bytes: &[u8],
        out: &mut [f32],
    ) -> Result<(), WeightsError> {
        if self.row_len == 0 {
            return Ok(());
        }
        let rows = bytes.chunks_exact(self.row_bytes).zip(out.chunks_exact_mut(self.row_len));
        for (row, (bytes, out)) in (first..).zip(rows) {
            decode_row(self.info.dtype, bytes, out);
            if let Some(column) = first_non_finite(out) {
                return Err(WeightsError::NonFinite {
                    file: self.source.name().to_owned(),
                    tensor: self.name_in_file().to_owned(),
                    index: self.rows.canonical(row) * self.row_len + column,
                    value: out[column],
                });
            }
        }
        Ok(())
    }

    /// Reorders rows of `len` elements canonically.
    fn in_order<T: Copy>(&self, stored: Vec<T>, len: usize) -> Vec<T> {
        if self.rows == RowOrder::Canonical || len == 0 {
            return stored;
        }
        let mut ordered = stored.clone();
        for (row, from) in stored.chunks_exact(len).enumerate() {
            let start = self.rows.canonical(row) * len;
            ordered[start..start + len].copy_from_slice(from);
        }
        ordered
    }

    /// Reads the tensor's bytes as stored, with rows in canonical order.
    pub(super) fn read_raw(&self) -> Result<RawTensor, WeightsError> {
        let mut bytes = vec![0; self.num_rows * self.row_bytes];
        self.for_each_row(|row, stored| {
            let start = row * self.row_bytes;
            bytes[start..start + self.row_bytes].copy_from_slice(stored);
            Ok(())
        })?;
        Ok(RawTensor { dtype: self.info.dtype, shape: self.info.shape.clone(), bytes })
    }

    /// Calls `take` with every row's canonical index and its stored bytes, in file order.
    fn for_each_row(
        &self,
        mut take: impl FnMut(usize, &[u8]) -> Result<(), WeightsError>,
    ) -> Result<(), WeightsError> {
        if self.row_bytes == 0 {
            return Ok(());
        }
        let rows_per_piece = (PIECE_BYTES / self.row_bytes).clamp(1, self.num_rows.max(1));
        let mut piece = vec![0; rows_per_piece * self.row_bytes];
        for first in (0..self.num_rows).step_by(rows_per_piece) {
            let rows = rows_per_piece.min(self.num_rows - first);
            let piece = &mut piece[..rows * self.row_bytes];
            let offset = self.offset + (first * self.row_bytes) as u64;
            self.source.read_into(piece, offset, self.name_in_file())?;
            for (row, bytes) in piece.chunks_exact(self.row_bytes).enumerate() {
                take(self.rows.canonical(first + row), bytes)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_return_to_their_halves() {
        let rows = RowOrder::Interleaved { head_dim: 6 };
        let canonical: Vec<_> = (0..12).map(|row| rows.canonical(row)).collect();
        assert_eq!(canonical, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
    }
}

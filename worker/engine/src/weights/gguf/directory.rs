//! The list of tensors in a GGUF file, and the check that they lie in the file without overlapping.

use std::collections::HashSet;
use std::sync::Arc;

use super::cursor::Cursor;
use super::kind::dtype;
use super::metadata::Metadata;
use crate::weights::tensor::{StoredTensor, TensorInfo};
use crate::weights::{Source, WeightsError};

/// Limit of the format. Tensor names are short.
const MAX_NAME: u64 = 64;
const MAX_DIMS: u32 = 4;
/// Minimum number of bytes of an entry: name length, dimension count, type, offset.
const MIN_ENTRY: u64 = 8 + 4 + 4 + 8;
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 16;

/// An entry as written in the file.
struct Entry {
    info: TensorInfo,
    /// Offset in bytes from the start of the data section.
    offset: u64,
}

/// Reads `count` entries; the data section begins at the next aligned position after them.
pub(super) fn parse(
    cursor: &mut Cursor<'_>,
    source: &Arc<Source>,
    count: u64,
    metadata: &Metadata,
) -> Result<Vec<StoredTensor>, WeightsError> {
    let alignment = alignment(source, metadata)?;
    let count = cursor.check_count(count, MIN_ENTRY, "the tensor count")?;
    let entries =
        (0..count).map(|index| parse_entry(cursor, index)).collect::<Result<Vec<_>, _>>()?;
    refuse_duplicates(source, &entries)?;
    let data_start = cursor.position().next_multiple_of(alignment);
    let tensors = entries
        .into_iter()
        .map(|entry| locate(source, entry, data_start, alignment))
        .collect::<Result<Vec<_>, _>>()?;
    refuse_overlaps(source, &tensors)?;
    Ok(tensors)
}

fn alignment(source: &Source, metadata: &Metadata) -> Result<u64, WeightsError> {
    let key = "general.alignment";
    let alignment = metadata.count(key)?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        let reason = format!("is {alignment}; must be a power of two up to {MAX_ALIGNMENT}");
        return Err(source.malformed(key, reason));
    }
    Ok(alignment)
}

fn parse_entry(cursor: &mut Cursor<'_>, index: usize) -> Result<Entry, WeightsError> {
    let source = cursor.source();
    let name = cursor.string(MAX_NAME, &format!("the name of tensor {index}"))?;
    let dims = cursor.u32(&name)?;
    if dims == 0 || dims > MAX_DIMS {
        let reason = format!("has {dims} dimensions; must have 1 to {MAX_DIMS}");
        return Err(source.malformed(&name, reason));
    }
    let mut shape = Vec::with_capacity(dims as usize);
    for _ in 0..dims {
        let dim = cursor.u64(&name)?;
        let dim = usize::try_from(dim).ok().filter(|dim| *dim > 0);
        shape.push(dim.ok_or_else(|| source.malformed(&name, "has a dimension of zero or 2^64"))?);
    }
    // The file lists the fastest-varying dimension first.
    shape.reverse();
    let dtype = dtype(source, &name, cursor.u32(&name)?)?;
    let offset = cursor.u64(&name)?;
    let info = TensorInfo { name, dtype, shape };
    Ok(Entry { info, offset })
}

fn locate(
    source: &Arc<Source>,
    Entry { info, offset }: Entry,
    data_start: u64,
    alignment: u64,
) -> Result<StoredTensor, WeightsError> {
    if !offset.is_multiple_of(alignment) {
        let reason = format!("lies at offset {offset}, which is not aligned to {alignment}");
        return Err(source.malformed(&info.name, reason));
    }
    match data_start.checked_add(offset) {
        Some(offset) => StoredTensor::new(info, Arc::clone(source), offset),
        None => Err(source.malformed(&info.name, format!("lies at offset {offset}"))),
    }
}

fn refuse_duplicates(source: &Source, entries: &[Entry]) -> Result<(), WeightsError> {
    let mut seen = HashSet::new();
    match entries.iter().find(|entry| !seen.insert(&entry.info.name)) {
        Some(entry) => Err(source.malformed(&entry.info.name, "is listed twice")),
        None => Ok(()),
    }
}

fn refuse_overlaps(source: &Source, tensors: &[StoredTensor]) -> Result<(), WeightsError> {
    let mut by_offset: Vec<_> = tensors.iter().collect();
    by_offset.sort_by_key(|tensor| tensor.byte_range().start);
    for pair in by_offset.windows(2) {
        if pair[1].byte_range().start < pair[0].byte_range().end {
            let reason = format!("overlaps {}", pair[0].info.name);
            return Err(source.malformed(&pair[1].info.name, reason));
        }
    }
    Ok(())
}

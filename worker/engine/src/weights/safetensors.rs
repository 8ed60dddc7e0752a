//! SafeTensors: the header is parsed and verified against the file; the data stays on disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use safetensors::tensor::{Dtype as StoredDtype, Metadata};

use super::tensor::{StoredTensor, TensorInfo};
use super::{Dtype, Source, WeightsError, layout};

/// Size of the header's length prefix (little endian) in bytes.
const PREFIX: u64 = 8;
/// Limit of the format.
const MAX_HEADER: u64 = 100_000_000;

/// Lists a file's tensors by name.
pub(super) fn read_tensors(
    source: &Arc<Source>,
) -> Result<BTreeMap<String, StoredTensor>, WeightsError> {
    let (metadata, data_start) = read_header(source)?;
    let mut tensors = BTreeMap::new();
    for (name, stored) in metadata.tensors() {
        // Of any type: it is not read.
        if layout::is_derived(&name) {
            continue;
        }
        let info = TensorInfo {
            dtype: dtype(source, &name, stored.dtype)?,
            shape: stored.shape.clone(),
            name: name.clone(),
        };
        let offset = data_start + stored.data_offsets.0 as u64;
        tensors.insert(name, StoredTensor::new(info, Arc::clone(source), offset)?);
    }
    Ok(tensors)
}

/// Reads the header; returns it with the offset at which the data begins.
///
/// Parsing verifies that the tensors follow each other without gaps or overlaps and that every
/// range matches its shape and type. This function also verifies that the data fills the file.
fn read_header(source: &Source) -> Result<(Metadata, u64), WeightsError> {
    let mut prefix = [0; PREFIX as usize];
    source.read_into(&mut prefix, 0, "the header length")?;
    let len = u64::from_le_bytes(prefix);
    if len > MAX_HEADER {
        let reason = format!("is {len} bytes; the format allows at most {MAX_HEADER}");
        return Err(source.malformed("the header length", reason));
    }
    let header = source.read(PREFIX, len, "the header")?;
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|error| source.malformed("the header", error.to_string()))?;
    let data_start = PREFIX + len;
    let data_len = source.len() - data_start;
    if metadata.data_len() as u64 != data_len {
        let reason = format!(
            "describes {} bytes of data, but {data_len} follow it; is the download complete?",
            metadata.data_len()
        );
        return Err(source.malformed("the header", reason));
    }
    Ok((metadata, data_start))
}

fn dtype(source: &Source, tensor: &str, stored: StoredDtype) -> Result<Dtype, WeightsError> {
    match stored {
        StoredDtype::F32 => Ok(Dtype::F32),
        StoredDtype::F16 => Ok(Dtype::F16),
        StoredDtype::BF16 => Ok(Dtype::BF16),
        other => Err(source.unsupported(
            format!("tensor {tensor} of type"),
            format!("{other:?}"),
            "F32, F16, BF16",
        )),
    }
}

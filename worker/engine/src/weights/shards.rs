//! SafeTensors in several files: an index maps each tensor to its file and must be correct.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;

use super::tensor::StoredTensor;
use super::{Folder, Source, WeightsError, json, layout, safetensors};

/// The largest indices in use, of mixture-of-experts models, are a tenth of this.
const MAX_BYTES: u64 = 64 << 20;

/// The relevant part of model.safetensors.index.json.
#[derive(Deserialize)]
#[serde(expecting = "an object with weight_map")]
struct Index {
    /// File of each tensor.
    weight_map: BTreeMap<String, String>,
}

/// Returns the names of the tensors in the index.
pub(super) fn listed(index: &Source) -> Result<Vec<String>, WeightsError> {
    let Index { weight_map } = json::read(index, MAX_BYTES)?;
    Ok(weight_map.into_keys().filter(|name| !layout::is_derived(name)).collect())
}

/// Lists the tensors of all files in the index.
pub(super) fn read_tensors(
    folder: &dyn Folder,
    index: &Source,
) -> Result<BTreeMap<String, StoredTensor>, WeightsError> {
    let Index { weight_map } = json::read(index, MAX_BYTES)?;
    let files: BTreeSet<_> = weight_map.values().map(String::as_str).collect();
    files.iter().try_for_each(|file| check_name(index, file))?;
    let mut tensors = BTreeMap::new();
    for file in files {
        let shard = Arc::new(open(folder, index, file)?);
        for (name, tensor) in safetensors::read_tensors(&shard)? {
            match weight_map.get(&name) {
                Some(expected) if expected == file => tensors.insert(name, tensor),
                Some(expected) => {
                    let reason = format!("lies in {file}, but the index places it in {expected}");
                    return Err(index.malformed(&name, reason));
                }
                None => {
                    let reason = format!("lies in {file}, but the index does not list it");
                    return Err(index.malformed(&name, reason));
                }
            };
        }
    }
    let missing = |name: &str| !tensors.contains_key(name) && !layout::is_derived(name);
    match weight_map.iter().find(|(name, _)| missing(name)) {
        None => Ok(tensors),
        Some((name, file)) => {
            let reason = format!("is not in {file}, where the index places it");
            Err(index.malformed(name, reason))
        }
    }
}

/// Accepts the name of a file in the same folder. An index is untrusted and must not refer to files
/// elsewhere.
fn check_name(index: &Source, file: &str) -> Result<(), WeightsError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !file.ends_with(".safetensors") || file.starts_with('.') || !file.chars().all(plain) {
        let reason = format!(
            "names {file:?}; a shard is a .safetensors file in the same folder, its name made of \
             letters, digits, dots and dashes"
        );
        return Err(index.malformed("weight_map", reason));
    }
    Ok(())
}

fn open(folder: &dyn Folder, index: &Source, file: &str) -> Result<Source, WeightsError> {
    folder.open(file)?.ok_or_else(|| {
        let reason = format!("names {file}, which does not exist; is the download complete?");
        index.malformed("weight_map", reason)
    })
}

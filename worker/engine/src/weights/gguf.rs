//! GGUF: one file with metadata, vocabulary and tensors.
//!
//! Nothing in the file is believed before it is checked: counts against the bytes that are left,
//! offsets against the file's size, tensors against each other.

mod architecture;
mod cursor;
mod directory;
mod kind;
mod metadata;
mod names;
mod value;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use architecture::Architecture;
pub use metadata::Metadata;
pub use value::{Array, Scalar, Value};

use super::tensor::{RowOrder, StoredTensor};
use super::{ModelConfig, Source, WeightsError};
use cursor::Cursor;
use names::Rows;

const MAGIC: [u8; 4] = *b"GGUF";
/// The tensor with a divisor for each rotary frequency.
const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// A parsed GGUF file: its metadata, and where its tensors lie.
#[derive(Debug)]
pub struct Gguf {
    source: Arc<Source>,
    metadata: Metadata,
    /// In file order, under the names that the file uses.
    tensors: Vec<StoredTensor>,
}

impl Gguf {
    /// Parses everything before the tensor data, and checks that the data it describes exists.
    pub fn parse(source: Arc<Source>) -> Result<Self, WeightsError> {
        let mut cursor = Cursor::new(&source);
        check_version(&mut cursor)?;
        let num_tensors = cursor.u64("the tensor count")?;
        let num_keys = cursor.u64("the metadata count")?;
        let metadata = Metadata::parse(&mut cursor, num_keys)?;
        let tensors = directory::parse(&mut cursor, &source, num_tensors, &metadata)?;
        Ok(Self { source, metadata, tensors })
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Whether there is a tensor of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.iter().any(|tensor| tensor.info.name == name)
    }

    /// By what the frequency of each rotary pair is divided, where a tensor says so.
    pub(super) fn rope_divisors(&self, head_dim: usize) -> Result<Option<Vec<f64>>, WeightsError> {
        let Some(tensor) = self.tensors.iter().find(|tensor| tensor.info.name == ROPE_DIVISORS)
        else {
            return Ok(None);
        };
        tensor.check_shape(&[head_dim / 2])?;
        let divisors = tensor.read_f32()?;
        match divisors.iter().find(|divisor| **divisor <= 0.0) {
            None => Ok(Some(divisors.into_iter().map(f64::from).collect())),
            Some(divisor) => {
                let reason = format!("holds {divisor}; frequencies can be divided by more than 0");
                Err(self.source.malformed(ROPE_DIVISORS, reason))
            }
        }
    }

    /// The tensors under their canonical names, with rotary rows marked for reordering.
    pub(super) fn canonical_tensors(
        &self,
        config: &ModelConfig,
    ) -> Result<BTreeMap<String, StoredTensor>, WeightsError> {
        let architecture = Architecture::of(&self.source, &self.metadata)?;
        let mut canonical = BTreeMap::new();
        for tensor in &self.tensors {
            // Part of the configuration; llama.cpp reads it for this architecture alone.
            if tensor.info.name == ROPE_DIVISORS && architecture == Architecture::Llama {
                continue;
            }
            let names = names::canonical(&tensor.info.name, architecture.rotary_rows());
            let Some((name, rows)) = names else {
                return Err(WeightsError::UnexpectedTensor {
                    file: self.source.name().to_owned(),
                    tensor: tensor.info.name.clone(),
                });
            };
            let rows = match rows {
                Rows::Plain => RowOrder::Canonical,
                Rows::Rotary => RowOrder::Interleaved { head_dim: config.head_dim },
            };
            canonical.insert(name.clone(), tensor.clone().renamed(name, rows)?);
        }
        Ok(canonical)
    }
}

/// Whether a file starts like a GGUF file.
pub(super) fn has_magic(source: &Source) -> bool {
    let mut start = [0; 4];
    source.read_into(&mut start, 0, "the magic number").is_ok() && start == MAGIC
}

fn check_version(cursor: &mut Cursor<'_>) -> Result<(), WeightsError> {
    let magic: [u8; 4] = cursor.array("the magic number")?;
    if magic != MAGIC {
        let reason = format!("is {magic:?} instead of \"GGUF\"; this is not a GGUF file");
        return Err(cursor.source().malformed("the magic number", reason));
    }
    match cursor.u32("the version")? {
        2 | 3 => Ok(()),
        // The version of a big-endian file has its bytes the other way round.
        version if (1..=3).contains(&version.swap_bytes()) => {
            let what = "byte order";
            Err(cursor.source().unsupported(what, "big endian", "little endian"))
        }
        version => Err(cursor.source().unsupported("GGUF version", version, "2, 3")),
    }
}

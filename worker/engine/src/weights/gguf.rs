//! GGUF: one file with metadata, vocabulary and tensors.
//!
//! Nothing in the file is believed before it is checked: counts against the bytes that are left,
//! offsets against the file's size, tensors against each other.

mod cursor;
mod directory;
mod kind;
mod metadata;
mod names;
mod value;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use metadata::Metadata;
pub use value::{Array, Scalar, Value};

use super::tensor::{RowOrder, StoredTensor};
use super::{ModelConfig, Source, WeightsError};
use cursor::Cursor;
use names::Rows;

const MAGIC: [u8; 4] = *b"GGUF";

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

    /// Whether the file has its own output projection instead of sharing the embeddings.
    pub(super) fn has_output(&self) -> bool {
        self.tensors.iter().any(|t| t.info.name == "output.weight")
    }

    /// The tensors under their canonical names, with rotary rows marked for reordering.
    pub(super) fn canonical_tensors(
        &self,
        config: &ModelConfig,
    ) -> Result<BTreeMap<String, StoredTensor>, WeightsError> {
        let mut canonical = BTreeMap::new();
        for tensor in &self.tensors {
            let Some((name, rows)) = names::canonical(&tensor.info.name) else {
                return Err(WeightsError::UnexpectedTensor {
                    file: self.source.name().to_owned(),
                    tensor: tensor.info.name.clone(),
                });
            };
            let rows = match rows {
                Rows::Plain => RowOrder::Canonical,
                Rows::Rotary => RowOrder::Interleaved { head_dim: config.head_dim },
            };
            canonical.insert(name.clone(), tensor.clone().renamed(name, rows));
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

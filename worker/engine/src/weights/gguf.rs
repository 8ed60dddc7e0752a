//! GGUF: one file with metadata, vocabulary and tensors.
//!
//! Everything in the file is verified before it is used: counts against the remaining bytes,
//! offsets against the file's size, tensors against each other.

mod architecture;
mod chat_template;
mod config;
mod cursor;
mod directory;
mod kind;
mod metadata;
mod names;
mod parts;
mod tokenizer;
mod value;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use architecture::Architecture;
pub(super) use chat_template::read as chat_templates;
pub(super) use config::from_metadata;
pub use metadata::Metadata;
pub use tokenizer::read as read_tokenizer;
pub use value::{Array, Scalar, Value};

use super::tensor::{RowOrder, StoredTensor};
use super::{ModelConfig, Source, WeightsError};
use cursor::Cursor;
use names::RowLayout;
pub(super) use parts::OpenPart;

const MAGIC: [u8; 4] = *b"GGUF";
/// Name of the tensor with a divisor for each rotary frequency.
const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// A parsed GGUF file: its metadata and the locations of its tensors.
#[derive(Debug)]
pub struct Gguf {
    source: Arc<Source>,
    metadata: Metadata,
    /// Tensors in file order, under the file's names.
    tensors: Vec<StoredTensor>,
}

impl Gguf {
    /// Parses everything before the tensor data, and checks that the described data exists.
    pub fn parse(source: Arc<Source>) -> Result<Self, WeightsError> {
        let mut cursor = Cursor::new(&source);
        check_version(&mut cursor)?;
        let num_tensors = cursor.u64("the tensor count")?;
        let num_keys = cursor.u64("the metadata count")?;
        let metadata = Metadata::parse(&mut cursor, num_keys)?;
        let tensors = directory::parse(&mut cursor, &source, num_tensors, &metadata)?;
        Ok(Self { source, metadata, tensors })
    }

    /// Returns the whole model if this is one of several files.
    pub(super) fn joined(self, open: OpenPart<'_>) -> Result<Self, WeightsError> {
        parts::join(self, open)
    }

    /// The file that has the metadata.
    pub(super) fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Whether there is a tensor of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.iter().any(|tensor| tensor.info.name == name)
    }

    /// Returns the divisors of the rotary frequencies, if the file has such a tensor.
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
                let reason = format!("holds {divisor}; divisors must be greater than 0");
                Err(self.source.malformed(ROPE_DIVISORS, reason))
            }
        }
    }

    /// Returns the tensors under their canonical names, with rotary rows marked for reordering.
    pub(super) fn canonical_tensors(
        &self,
        config: &ModelConfig,
    ) -> Result<BTreeMap<String, StoredTensor>, WeightsError> {
        let architecture = Architecture::of(&self.source, &self.metadata)?;
        let mut canonical = BTreeMap::new();
        for tensor in &self.tensors {
            // Part of the configuration; llama.cpp reads it only for this architecture.
            if tensor.info.name == ROPE_DIVISORS && architecture == Architecture::Llama {
                continue;
            }
            if names::is_derived(&tensor.info.name) {
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
                RowLayout::Plain => RowOrder::Canonical,
                RowLayout::Rotary => RowOrder::Interleaved { head_dim: config.head_dim },
            };
            canonical.insert(name.clone(), tensor.clone().renamed(name, rows)?);
        }
        Ok(canonical)
    }
}

/// Returns the name in GGUF files of a tensor with this canonical name.
pub(super) fn name_in_file(canonical: &str) -> String {
    names::in_file(canonical)
}

/// Whether a file starts like a GGUF file.
pub(super) fn has_magic(source: &Source) -> bool {
    let mut start = [0; 4];
    source.read_into(&mut start, 0, "the magic number").is_ok() && start == MAGIC
}

fn check_version(cursor: &mut Cursor<'_>) -> Result<(), WeightsError> {
    let magic: [u8; 4] = cursor.array("the magic number")?;
    if magic != MAGIC {
        let reason = format!("is \"{}\" instead of \"GGUF\"", magic.escape_ascii());
        return Err(cursor.source().malformed("the magic number", reason));
    }
    match cursor.u32("the version")? {
        2 | 3 => Ok(()),
        // In a big-endian file the bytes of the version are swapped.
        version if (1..=3).contains(&version.swap_bytes()) => {
            let what = "byte order";
            Err(cursor.source().unsupported(what, "big endian", "little endian"))
        }
        version => Err(cursor.source().unsupported("GGUF version", version, "2, 3")),
    }
}

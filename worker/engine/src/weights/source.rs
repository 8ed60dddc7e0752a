//! A readable file with its name for errors, whose reads are checked against its size.

use std::fmt;

use super::{ReadAt, WeightsError};

/// An open model file.
pub struct Source {
    name: String,
    reader: Box<dyn ReadAt>,
}

impl Source {
    /// Names `reader` as `name`, a path or a label for errors.
    pub fn new(name: impl Into<String>, reader: impl ReadAt + 'static) -> Self {
        Self { name: name.into(), reader: Box::new(reader) }
    }

    /// Name in errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The size in bytes.
    pub fn len(&self) -> u64 {
        self.reader.len()
    }

    /// Whether the file is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads `len` bytes at `offset` into a new buffer, which is allocated only if the file holds
    /// them.
    ///
    /// `what` names the bytes in errors.
    pub fn read(&self, offset: u64, len: u64, what: &str) -> Result<Vec<u8>, WeightsError> {
        self.check(offset, len, what)?;
        let len = usize::try_from(len)
            .map_err(|_| self.malformed(what, format!("{len} bytes do not fit in memory")))?;
        let mut bytes = vec![0; len];
        self.read_into(&mut bytes, offset, what)?;
        Ok(bytes)
    }

    /// Fills `buf` with the bytes at `offset`.
    pub fn read_into(&self, buf: &mut [u8], offset: u64, what: &str) -> Result<(), WeightsError> {
        self.check(offset, buf.len() as u64, what)?;
        self.reader.read_exact_at(buf, offset).map_err(|source| WeightsError::Io {
            file: self.name.clone(),
            what: what.to_owned(),
            source,
        })
    }

    /// Reads the whole file, if it is no larger than `limit` bytes.
    pub fn read_all(&self, limit: u64) -> Result<Vec<u8>, WeightsError> {
        if self.len() > limit {
            let reason = format!("is {} bytes long; at most {limit} are accepted", self.len());
            return Err(self.malformed("the file", reason));
        }
        self.read(0, self.len(), "the file")
    }

    pub(super) fn check(&self, offset: u64, len: u64, what: &str) -> Result<(), WeightsError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(self.malformed(
                what,
                format!(
                    "takes {len} bytes at offset {offset}, but the file ends after {} bytes; \
                     is the download complete?",
                    self.len()
                ),
            )),
        }
    }

    /// Returns what the file is instead of a model's, if that is known.
    pub(super) fn mistaken_for(&self) -> Option<&'static str> {
        let mut start = vec![0; usize::try_from(self.len()).map_or(64, |len| len.min(64))];
        self.reader.read_exact_at(&mut start, 0).ok()?;
        let text = start.trim_ascii_start().to_ascii_lowercase();
        match text.as_slice() {
            [] => Some("is empty; is the download complete?"),
            text if text.starts_with(b"version https://git-lfs") => {
                Some("is a Git LFS pointer and not the file itself; fetch it with `git lfs pull`")
            }
            text if text.starts_with(b"<!doctype") || text.starts_with(b"<html") => {
                Some("is a web page and not the file itself; the download has failed")
            }
            text if text.starts_with(b"<?xml") => {
                Some("is an XML document, perhaps an error of a store; the download has failed")
            }
            text if text.starts_with(b"pk\x03\x04") => Some(
                "is a zip archive, perhaps of PyTorch, which is not read; convert or unpack it",
            ),
            text if text.starts_with(b"\x1f\x8b") => Some("is compressed with gzip; unpack it"),
            _ => None,
        }
    }

    /// Returns an error about a part of the file, or about all of it if it is another kind of file.
    pub(super) fn malformed(&self, subject: &str, reason: impl Into<String>) -> WeightsError {
        let (subject, reason) = match self.mistaken_for() {
            Some(instead) => ("the file", instead.to_owned()),
            None => (subject, reason.into()),
        };
        WeightsError::Malformed {
            file: self.name.clone(),
            subject: brief(subject.to_owned()),
            reason,
        }
    }

    pub(super) fn unsupported(
        &self,
        subject: impl Into<String>,
        value: impl fmt::Display,
        supported: impl Into<String>,
    ) -> WeightsError {
        WeightsError::Unsupported {
            file: self.name.clone(),
            subject: brief(subject.into()),
            value: brief(value.to_string()),
            supported: supported.into(),
        }
    }
}

/// Truncates a text from a file for an error; its length is limited only by the file.
fn brief(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(200) {
        text.truncate(end);
        text.push_str("...");
    }
    text
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("name", &self.name).field("len", &self.len()).finish()
    }
}

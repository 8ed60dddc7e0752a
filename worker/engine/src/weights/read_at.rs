//! Positional reads, the only way in which model files are read.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A sequence of bytes of known length that any thread can read at any position.
pub trait ReadAt: Send + Sync {
    /// The number of bytes.
    fn len(&self) -> u64;

    /// Whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` with the bytes that start at `offset`.
    ///
    /// Fails with [`io::ErrorKind::UnexpectedEof`] if they do not all exist.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

/// A file read by position. It is not memory-mapped: if a mapped file shrinks, the process is
/// killed.
#[derive(Debug)]
pub struct FileReader {
    file: File,
    len: u64,
}

impl FileReader {
    /// Opens a regular file. Anything else (a folder, a pipe) has no size to check against.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Checked before opening, since opening a pipe waits for its writer.
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file, len })
    }
}

impl ReadAt for FileReader {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
}

/// Bytes embedded in the binary.
impl ReadAt for &'static [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        copy_at(self, buf, offset)
    }
}

/// Bytes held in memory.
impl ReadAt for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        copy_at(self, buf, offset)
    }
}

fn copy_at(bytes: &[u8], buf: &mut [u8], offset: u64) -> io::Result<()> {
    let found = usize::try_from(offset)
        .ok()
        .and_then(|start| Some(start..start.checked_add(buf.len())?))
        .and_then(|range| bytes.get(range))
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    buf.copy_from_slice(found);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn reads_past_the_end_fail() {
        let bytes: &'static [u8] = b"stoker";
        let mut buf = [0; 3];
        bytes.read_exact_at(&mut buf, 3).unwrap();
        assert_eq!(&buf, b"ker");
        for offset in [4, 6, 7, u64::MAX] {
            let error = bytes.read_exact_at(&mut buf, offset).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn a_folder_is_not_a_file() {
        assert!(FileReader::open(Path::new("/")).is_err());
    }
}

//! Sequential reader of a file with a small window. Every read is checked against the file's size.

use crate::weights::{Source, WeightsError};

/// Number of bytes to fetch at a time.
const WINDOW: u64 = 64 << 10;

/// A position in a file.
pub(super) struct Cursor<'a> {
    source: &'a Source,
    position: u64,
    window: Vec<u8>,
    window_start: u64,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        Self { source, position: 0, window: Vec::new(), window_start: 0 }
    }

    pub(super) fn source(&self) -> &'a Source {
        self.source
    }

    /// Position in bytes from the start of the file.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Number of remaining bytes.
    pub(super) fn remaining(&self) -> u64 {
        self.source.len().saturating_sub(self.position)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], WeightsError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, WeightsError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, WeightsError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// Reads a length, then that many bytes, at most `limit`.
    pub(super) fn text(&mut self, limit: u64, what: &str) -> Result<Vec<u8>, WeightsError> {
        let len = self.u64(what)?;
        if len > limit {
            let reason = format!("is {len} bytes long; at most {limit} are accepted");
            return Err(self.source.malformed(what, reason));
        }
        self.bytes(len, what)
    }

    /// Reads a length, then that many bytes of UTF-8, at most `limit`.
    pub(super) fn string(&mut self, limit: u64, what: &str) -> Result<String, WeightsError> {
        String::from_utf8(self.text(limit, what)?).map_err(|error| {
            let reason = format!("is not UTF-8: {}", error.utf8_error());
            self.source.malformed(what, reason)
        })
    }

    /// Skips `len` bytes.
    pub(super) fn skip(&mut self, len: u64, what: &str) -> Result<(), WeightsError> {
        self.source.check(self.position, len, what)?;
        self.position += len;
        Ok(())
    }

    /// Reads `len` bytes. The buffer is allocated only if the file holds them.
    pub(super) fn bytes(&mut self, len: u64, what: &str) -> Result<Vec<u8>, WeightsError> {
        self.source.check(self.position, len, what)?;
        // The file holds this many bytes, so the length fits on any machine that could load the
        // file.
        let len = usize::try_from(len).map_err(|_| {
            self.source.malformed(what, format!("{len} bytes do not fit in memory"))
        })?;
        let mut bytes = vec![0; len];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    /// Refuses `count` items of at least `size` bytes each if the file cannot hold them.
    pub(super) fn check_count(
        &self,
        count: u64,
        size: u64,
        what: &str,
    ) -> Result<usize, WeightsError> {
        let fits = count.checked_mul(size).is_some_and(|bytes| bytes <= self.remaining());
        usize::try_from(count).ok().filter(|_| fits).ok_or_else(|| {
            let reason = format!(
                "claims {count} items of {size} bytes or more, but {} bytes are left in the file",
                self.remaining()
            );
            self.source.malformed(what, reason)
        })
    }

    fn fill(&mut self, out: &mut [u8], what: &str) -> Result<(), WeightsError> {
        if out.len() as u64 > WINDOW {
            self.source.read_into(out, self.position, what)?;
        } else {
            self.source.check(self.position, out.len() as u64, what)?;
            let mut start = (self.position - self.window_start) as usize;
            if self.window.len() < start + out.len() {
                let len = WINDOW.min(self.remaining());
                self.window = self.source.read(self.position, len, what)?;
                self.window_start = self.position;
                start = 0;
            }
            out.copy_from_slice(&self.window[start..start + out.len()]);
        }
        self.position += out.len() as u64;
        Ok(())
    }
}

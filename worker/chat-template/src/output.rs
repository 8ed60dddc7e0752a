//! Where a template writes: a text of bounded length.

use std::io;

/// A text that refuses to grow beyond a limit.
#[derive(Debug)]
pub(crate) struct BoundedText {
    bytes: Vec<u8>,
    limit: usize,
    exceeded: bool,
}

impl BoundedText {
    pub(crate) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, exceeded: false }
    }

    /// Whether more was written than the limit allows.
    pub(crate) fn exceeded(&self) -> bool {
        self.exceeded
    }

    /// Returns the text.
    pub(crate) fn into_text(self) -> String {
        // A template writes text only.
        String::from_utf8(self.bytes).unwrap_or_default()
    }
}

impl io::Write for BoundedText {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit - self.bytes.len() {
            self.exceeded = true;
            return Err(io::Error::other("the text is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

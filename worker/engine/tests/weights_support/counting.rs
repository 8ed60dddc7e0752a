//! A reader that counts the bytes read.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stoker_engine::weights::ReadAt;

/// Counters shared by the readers of one model.
#[derive(Clone, Default)]
pub(crate) struct Reads(Arc<Counts>);

#[derive(Default)]
struct Counts {
    largest: AtomicU64,
    total: AtomicU64,
}

impl Reads {
    /// Size of the largest read in bytes, which is the largest buffer allocated for reading.
    pub(crate) fn largest(&self) -> u64 {
        self.0.largest.load(Ordering::Relaxed)
    }

    /// Total number of bytes read.
    pub(crate) fn total(&self) -> u64 {
        self.0.total.load(Ordering::Relaxed)
    }
}

/// Bytes in memory whose reads are counted.
pub(crate) struct Counting {
    bytes: Vec<u8>,
    reads: Reads,
}

impl Counting {
    pub(crate) fn new(bytes: Vec<u8>, reads: Reads) -> Self {
        Self { bytes, reads }
    }
}

impl ReadAt for Counting {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let len = buf.len() as u64;
        self.reads.0.largest.fetch_max(len, Ordering::Relaxed);
        self.reads.0.total.fetch_add(len, Ordering::Relaxed);
        self.bytes.read_exact_at(buf, offset)
    }
}

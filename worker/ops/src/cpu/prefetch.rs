//! What a pass over weights prefetches.
//!
//! Weights are read sequentially, and each thread waits for memory unless what it needs next is on
//! its way. A pass that waits for memory most of the time prefetches what it reads itself, a fixed
//! distance ahead. One that computes longer than it reads, for more rows, prefetches a share of the
//! weights that follow.

use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

/// Distance in bytes at which a pass prefetches what it reads itself.
const DISTANCE: usize = 512;

/// What a pass prefetches of a run of lines.
#[derive(Clone, Copy)]
pub(super) struct Prefetch {
    /// Start of the memory.
    from: *const u8,
    /// Number of bytes per line that the pass reads.
    step: usize,
    /// Whether to prefetch into the first cache instead of the second, which holds more.
    soon: bool,
}

impl Prefetch {
    /// Prefetches `lines` themselves.
    pub(super) fn same(lines: &[u8]) -> Self {
        Self { from: lines.as_ptr().wrapping_add(DISTANCE), step: crate::memory::LINE, soon: true }
    }

    /// Prefetches a share of `next` during pass `number` of `count`, each of `lines` lines.
    pub(super) fn share(next: &[u8], number: usize, count: usize, lines: usize) -> Self {
        let share = &next[next.len() * number / count..next.len() * (number + 1) / count];
        Self { from: share.as_ptr(), step: share.len() / lines.max(1), soon: false }
    }

    /// Prefetches what belongs to `line` of the pass.
    #[inline(always)]
    pub(super) fn at(self, line: usize) {
        let address = self.from.wrapping_add(line * self.step).cast();
        // SAFETY: every x86-64 CPU has the instruction, and it accepts any address.
        unsafe {
            if self.soon {
                _mm_prefetch::<_MM_HINT_T0>(address);
            } else {
                _mm_prefetch::<_MM_HINT_T1>(address);
            }
        }
    }
}

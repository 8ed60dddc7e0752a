//! Memory that is read once a step: on cache lines, in large pages, and how fast it can be read.

use std::time::{Duration, Instant};

use bytemuck::{Pod, Zeroable};

use super::{
    isa::{Isa, Kernel},
    pool::pool,
    simd::Simd,
};

/// A cache line, and as much as the widest register holds.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct Line(pub [u8; LINE]);

/// Bytes of a cache line.
pub const LINE: usize = 64;

/// Memory that was allocated in cache lines, as bytes.
pub struct Lines(pub Vec<Line>);

impl AsRef<[u8]> for Lines {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// Zeroed memory of `lines` cache lines, in large pages where the system has them.
///
/// A step reads gigabytes; with pages of 4 KiB each holds up the reader at its border.
pub fn lines(lines: usize) -> Vec<Line> {
    let mut memory: Vec<Line> = Vec::with_capacity(lines);
    // Before it is touched: what has been given in small pages stays in them.
    prefer_large_pages(memory.spare_capacity_mut());
    memory.resize(lines, Line([0; LINE]));
    memory
}

/// `count` zeros in large pages where the system has them. What is not written costs no memory.
pub fn zeros<T: Zeroable + Clone>(count: usize) -> Vec<T> {
    let mut memory = bytemuck::zeroed_vec(count);
    // A large vector of zeros is memory fresh from the system, not touched yet.
    prefer_large_pages(&mut memory);
    memory
}

#[cfg(target_os = "linux")]
fn prefer_large_pages<T>(memory: &mut [T]) {
    const PAGE: usize = 4096;
    let all = memory.as_mut_ptr_range();
    let (start, end) =
        ((all.start as usize).next_multiple_of(PAGE), all.end as usize / PAGE * PAGE);
    if start < end {
        // SAFETY: these whole pages belong to `memory`, and the advice changes neither contents nor access. It is
        // refused where there are no large pages, and nothing is lost then.
        unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn prefer_large_pages<T>(_: &mut [T]) {}

/// How fast all threads together can read memory, in bytes a second: the best of a few passes over what no cache holds,
/// in the kind of memory that weights lie in.
pub fn read_bandwidth() -> f64 {
    const BYTES: usize = 1 << 30;
    const PIECE: usize = 256 << 10;
    const PASSES: usize = 5;
    let memory = lines(BYTES / LINE);
    let words: &[u64] = bytemuck::cast_slice(&memory);
    let pieces: Vec<_> = words.chunks(PIECE / size_of::<u64>()).collect();
    let mut best = Duration::MAX;
    for _ in 0..PASSES {
        let begun = Instant::now();
        pool().run(pieces.len(), |piece| {
            std::hint::black_box(sum(pieces[piece]));
        });
        best = best.min(begun.elapsed());
    }
    BYTES as f64 / best.as_secs_f64()
}

/// The sum of `words`, in as many lanes as make every load independent.
fn sum(words: &[u64]) -> u64 {
    Isa::best().run(Sum(words))
}

struct Sum<'a>(&'a [u64]);

impl Kernel for Sum<'_> {
    type Output = u64;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> u64 {
        let (chunks, rest) = self.0.as_chunks::<64>();
        let mut lanes = [0u64; 64];
        for chunk in chunks {
            for (lane, word) in lanes.iter_mut().zip(chunk) {
                *lane = lane.wrapping_add(*word);
            }
        }
        lanes.iter().chain(rest).fold(0, |a, b| a.wrapping_add(*b))
    }
}

//! Memory that every step reads: aligned to cache lines and in huge pages. Measures its bandwidth.

use std::time::{Duration, Instant};

use bytemuck::{Pod, Zeroable};

use super::{
    isa::{Isa, Kernel},
    pool::pool,
    simd::Simd,
};

/// A cache line, which is also the size of the widest register.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct Line(pub [u8; LINE]);

/// Size of a cache line in bytes.
pub const LINE: usize = 64;

/// Memory allocated in cache lines, as bytes.
pub struct Lines(pub Vec<Line>);

impl AsRef<[u8]> for Lines {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// Allocates `lines` zeroed cache lines, in huge pages if the system has them.
///
/// A step reads gigabytes, and every boundary of a 4 KiB page delays the reader.
pub fn lines(lines: usize) -> Vec<Line> {
    let mut memory: Vec<Line> = Vec::with_capacity(lines);
    // Before the first access: memory that the system has provided in small pages stays in them.
    prefer_huge_pages(memory.spare_capacity_mut());
    memory.resize(lines, Line([0; LINE]));
    memory
}

/// Allocates `count` zeros, in huge pages if the system has them. Unwritten pages take no memory.
pub fn zeros<T: Zeroable + Clone>(count: usize) -> Vec<T> {
    let mut memory = bytemuck::zeroed_vec(count);
    // The system provides a large zeroed vector as fresh memory that was not accessed yet.
    prefer_huge_pages(&mut memory);
    memory
}

#[cfg(target_os = "linux")]
fn prefer_huge_pages<T>(memory: &mut [T]) {
    const PAGE: usize = 4096;
    let all = memory.as_mut_ptr_range();
    let (start, end) =
        ((all.start as usize).next_multiple_of(PAGE), all.end as usize / PAGE * PAGE);
    if start < end {
        // SAFETY: these whole pages belong to `memory`, and the advice changes neither contents nor
        // access. Where it is refused there are no huge pages, and nothing else changes.
        unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn prefer_huge_pages<T>(_: &mut [T]) {}

/// Measures the memory bandwidth of all threads together, in bytes per second: the best of a few
/// passes over memory that exceeds every cache, allocated like weights.
pub fn read_bandwidth() -> f64 {
    const BYTES: usize = 1 << 30;
    const CHUNK: usize = 256 << 10;
    const PASSES: usize = 5;
    let memory = lines(BYTES / LINE);
    let words: &[u64] = bytemuck::cast_slice(&memory);
    let chunks: Vec<_> = words.chunks(CHUNK / size_of::<u64>()).collect();
    let mut best = Duration::MAX;
    for _ in 0..PASSES {
        let begun = Instant::now();
        pool().run(chunks.len(), |chunk| {
            std::hint::black_box(sum(chunks[chunk]));
        });
        best = best.min(begun.elapsed());
    }
    BYTES as f64 / best.as_secs_f64()
}

/// Sums `words` in enough lanes to make loads independent.
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

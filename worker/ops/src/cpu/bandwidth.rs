//! The memory bandwidth of the CPU.

use std::time::{Duration, Instant};

use super::{
    isa::{Isa, Kernel},
    pool::pool,
    simd::Simd,
};
use crate::memory::{LINE, lines};

/// Number of places that a thread reads at once, each sequentially: like strips of weights.
const STREAMS: usize = 4;
/// Number of bytes that a thread takes at a time.
const CHUNK: usize = 256 << 10;

/// Measures the memory bandwidth of all threads together, in bytes per second: the best of a few
/// passes over memory that exceeds every cache, allocated like weights, by each of two patterns: one
/// place at a time, and [`STREAMS`] at once with prefetches. Which one is faster depends on the CPU.
pub fn read_bandwidth() -> f64 {
    const BYTES: usize = 1 << 30;
    const PASSES: usize = 5;
    let memory = lines(BYTES / LINE);
    let words: &[u64] = bytemuck::cast_slice(&memory);
    let chunks: Vec<_> = words.chunks(CHUNK / size_of::<u64>()).collect();
    let mut best = Duration::MAX;
    for _ in 0..PASSES {
        for streams in [1, STREAMS] {
            let begun = Instant::now();
            pool().run(chunks.len(), |chunk| {
                let words = chunks[chunk];
                std::hint::black_box(if streams == 1 {
                    Isa::best().run(Sum([words]))
                } else {
                    let quarter = words.len() / STREAMS;
                    let part = |i: usize| &words[i * quarter..(i + 1) * quarter];
                    Isa::best().run(Sum::<STREAMS>(std::array::from_fn(part)))
                });
            });
            best = best.min(begun.elapsed());
        }
    }
    BYTES as f64 / best.as_secs_f64()
}

/// Sums slices of the same length, which it reads at once.
struct Sum<'a, const N: usize>([&'a [u64]; N]);

impl<const N: usize> Kernel for Sum<'_, N> {
    type Output = u64;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> u64 {
        /// Number of words of a line.
        const WORDS: usize = LINE / size_of::<u64>();
        let count = self.0[0].len() / WORDS;
        let slices = self.0.map(|words| &words.as_chunks::<WORDS>().0[..count]);
        // Enough lanes to make loads independent.
        let mut lanes = [[[0u64; WORDS]; 4]; N];
        for first in (0..count).step_by(4) {
            for (slice, lanes) in slices.iter().zip(&mut lanes) {
                for (line, lanes) in slice[first..].iter().zip(lanes) {
                    if N > 1 {
                        prefetch(line);
                    }
                    for (lane, word) in lanes.iter_mut().zip(line) {
                        *lane = lane.wrapping_add(*word);
                    }
                }
            }
        }
        lanes.as_flattened().as_flattened().iter().fold(0, |a, b| a.wrapping_add(*b))
    }
}

/// Prefetches what follows `line`.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "only x86 is measured"))]
fn prefetch(line: &[u64]) {
    #[cfg(target_arch = "x86_64")]
    super::prefetch::Prefetch::same(bytemuck::cast_slice(line)).at(0);
}

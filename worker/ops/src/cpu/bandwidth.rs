//! The memory bandwidth of the CPU.

use std::time::{Duration, Instant};

use super::{
    isa::{Isa, Kernel},
    pool::pool,
    simd::Simd,
};
use crate::memory::{LINE, lines};

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

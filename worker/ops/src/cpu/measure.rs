//! What the machine gives, and what of it the operations take.

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

/// Bytes that are read to see how fast memory is: far more than any cache holds.
const BYTES: usize = 512 << 20;
const WORDS: usize = BYTES / size_of::<u64>();

/// Threads that operations run on.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Bytes a second that all threads together read from memory, the best of three times.
pub fn read_rate() -> f64 {
    // Ones: zeros that were never written would all be the same page.
    let words = vec![1u64; WORDS];
    let once = || {
        let begun = Instant::now();
        thread::scope(|scope| {
            for part in words.chunks(WORDS.div_ceil(threads())) {
                scope.spawn(move || black_box(part.iter().fold(0u64, |sum, w| sum ^ w)));
            }
        });
        BYTES as f64 / begun.elapsed().as_secs_f64()
    };
    (0..3).map(|_| once()).fold(0.0, f64::max)
}

/// Wall time that operations of this process have taken so far. Not counted yet.
pub fn kernel_time() -> Duration {
    Duration::ZERO
}

//! Copies of memory that exceeds every cache: measures bandwidth, and keeps a GPU busy.

use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor, s};

/// Several buffers, because some devices have no large ones.
const BUFFERS: usize = 8;
const BYTES: usize = 64 << 20;
/// Rounds of copies before the host waits, so that the wait is negligible.
const ROUNDS: usize = 16;
const PASSES: usize = 4;

/// Buffers to copy.
pub struct Copies(Vec<Tensor<1>>);

impl Copies {
    /// Allocates the memory.
    pub fn new(device: &Device) -> Self {
        let ones = |_| Tensor::ones([BYTES / size_of::<f32>()], device);
        Self((0..BUFFERS).map(ones).collect())
    }

    /// Measures the bytes per second that copies read and write: the best of a few passes.
    pub fn bandwidth(&self) -> Result<f64, String> {
        // The first run compiles the kernel, the second determines the number of rounds.
        self.wait(1)?;
        let begun = Instant::now();
        self.wait(1)?;
        let rounds = if begun.elapsed() > Duration::from_millis(50) { 1 } else { ROUNDS };
        let mut best = Duration::MAX;
        for _ in 0..PASSES {
            let begun = Instant::now();
            self.wait(rounds)?;
            best = best.min(begun.elapsed());
        }
        Ok((2 * BYTES * BUFFERS * rounds) as f64 / best.as_secs_f64())
    }

    /// Queues copies that take the device about `time` at `rate` bytes per second, without waiting.
    pub fn queue(&self, time: Duration, rate: f64) {
        let round = (2 * BYTES * BUFFERS) as f64 / rate;
        for _ in 0..(time.as_secs_f64() / round).ceil() as usize {
            self.round();
        }
    }

    /// Copies all buffers and returns the copies.
    fn round(&self) -> Vec<Tensor<1>> {
        self.0.iter().map(|buffer| buffer.clone() + 1.0).collect()
    }

    fn wait(&self, rounds: usize) -> Result<(), String> {
        let mut last = Vec::new();
        for _ in 0..rounds {
            last = self.round();
        }
        // Reading a number of the last copy waits for all of them.
        let number = last.swap_remove(BUFFERS - 1).slice(s![0..1]).try_into_data();
        match number.map_err(|error| error.to_string())?.iter::<f32>().next() {
            Some(2.0) => Ok(()),
            other => Err(format!("1 + 1 is {other:?}")),
        }
    }
}

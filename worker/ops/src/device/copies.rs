//! Copies of memory that no cache holds: how fast they are, and as work that keeps a GPU busy.

use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor, s};

/// Several buffers, because some devices have no large ones.
const BUFFERS: usize = 8;
const BYTES: usize = 64 << 20;
/// Times that all of them are copied before anybody waits, so that the wait counts for little.
const ROUNDS: usize = 16;
const PASSES: usize = 4;

/// What is copied.
pub struct Copies(Vec<Tensor<1>>);

impl Copies {
    /// Asks for the memory.
    pub fn new(device: &Device) -> Self {
        let ones = |_| Tensor::ones([BYTES / size_of::<f32>()], device);
        Self((0..BUFFERS).map(ones).collect())
    }

    /// What copies read and write, in bytes a second: the best of a few passes.
    pub fn rate(&self) -> Result<f64, String> {
        // Compiles the kernel, and tells a slow device from a fast one.
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

    /// Gives the device as much to do as takes it about `time` at `rate` bytes a second, and does not wait.
    pub fn queue(&self, time: Duration, rate: f64) {
        let round = (2 * BYTES * BUFFERS) as f64 / rate;
        for _ in 0..(time.as_secs_f64() / round).ceil() as usize {
            self.round();
        }
    }

    /// Copies all; the copies.
    fn round(&self) -> Vec<Tensor<1>> {
        self.0.iter().map(|buffer| buffer.clone() + 1.0).collect()
    }

    fn wait(&self, rounds: usize) -> Result<(), String> {
        let mut last = Vec::new();
        for _ in 0..rounds {
            last = self.round();
        }
        // A number of the last: it comes when all are done.
        let number = last.swap_remove(BUFFERS - 1).slice(s![0..1]).try_into_data();
        match number.map_err(|error| error.to_string())?.iter::<f32>().next() {
            Some(2.0) => Ok(()),
            other => Err(format!("1 + 1 is {other:?}")),
        }
    }
}

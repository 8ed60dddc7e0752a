//! Readings of a GPU's sensors during a measurement.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use stoker_ops::{
    Device,
    device::sensors::{Reading, Sensors},
};

/// Samples the sensors of a GPU on a thread during a measurement.
pub(crate) struct Meter {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Reading>>>,
}

impl Meter {
    /// Starts sampling, if the device is a GPU with a driver interface.
    pub(crate) fn begin(device: &Device) -> Self {
        const INTERVAL: Duration = Duration::from_millis(100);
        let stop = Arc::new(AtomicBool::new(false));
        let thread = Sensors::of(device).map(|gpu| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut readings = vec![gpu.read()];
                while !stop.load(Ordering::Relaxed) {
                    thread::park_timeout(INTERVAL);
                    readings.push(gpu.read());
                }
                readings
            })
        });
        Self { stop, thread }
    }

    /// Stops sampling and returns the aggregate of all readings.
    pub(crate) fn end(mut self) -> Reading {
        self.stop.store(true, Ordering::Relaxed);
        let readings = self.thread.take().map(|thread| {
            thread.thread().unpark();
            thread.join().unwrap_or_default()
        });
        Reading::aggregate(&readings.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_has_no_readings() {
        assert_eq!(Meter::begin(&Device::cpu()).end(), Reading::default());
    }
}

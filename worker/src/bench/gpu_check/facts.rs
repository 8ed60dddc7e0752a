//! What a device is.

use serde::Serialize;
use stoker_ops::{Device, cpu};
use stoker_shared::VERSION;

use crate::{bench::Error, gpu::Gpu};

/// What a device is, and the machine that it is in.
#[derive(Debug, Serialize)]
pub(super) struct Facts {
    /// Of this program.
    stoker: String,
    /// As it calls itself.
    pub(super) device: String,
    /// What compiled code it runs.
    class: String,
    /// What its driver calls itself, and how much power and memory it gives.
    driver: Option<String>,
    memory_bytes: Option<u64>,
    cpu: String,
    threads: usize,
    /// Read and written by a copy.
    pub(super) copy_bytes_per_second: f64,
}

impl Facts {
    pub(super) fn of(device: &Device) -> Result<Self, Error> {
        let gpu = Gpu::of(device);
        Ok(Self {
            stoker: VERSION.into(),
            device: device.name.clone(),
            class: device.class.clone(),
            driver: gpu.as_ref().and_then(Gpu::driver),
            memory_bytes: gpu.as_ref().and_then(|gpu| gpu.read().memory_size),
            cpu: Device::cpu().name,
            threads: cpu::threads(),
            copy_bytes_per_second: device.memory_rate().map_err(Error::Failed)?,
        })
    }

    /// A line each: what, and which.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("Stoker", self.stoker.clone()),
            ("device", format!("{} ({})", self.device, self.class)),
        ];
        lines.extend(self.driver.clone().map(|driver| ("driver", driver)));
        let memory =
            self.memory_bytes.map(|bytes| format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64));
        lines.extend(memory.map(|memory| ("memory", memory)));
        lines.push((
            "a copy reads and writes",
            format!("{:.0} GB/s", self.copy_bytes_per_second / 1e9),
        ));
        lines.push(("CPU", format!("{}, {} threads", self.cpu, self.threads)));
        lines
    }
}

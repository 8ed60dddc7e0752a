//! Description of the device and its machine.

use serde::Serialize;
use stoker_ops::{Device, cpu, device::sensors::Sensors};
use stoker_shared::VERSION;

use crate::Error;

/// Description of the device and its machine.
#[derive(Debug, Serialize)]
pub(super) struct Facts {
    /// Version of Stoker.
    stoker: String,
    /// Name of the device.
    pub(super) device: String,
    /// Class of the device, which selects the compiled kernels.
    class: String,
    /// Name of the driver.
    driver: Option<String>,
    memory_bytes: Option<u64>,
    cpu: String,
    threads: usize,
    /// Bytes per second that a copy in device memory reads and writes.
    pub(super) copy_bytes_per_second: f64,
}

impl Facts {
    pub(super) fn of(device: &Device) -> Result<Self, Error> {
        let gpu = Sensors::of(device);
        Ok(Self {
            stoker: VERSION.into(),
            device: device.name.clone(),
            class: device.class.clone(),
            driver: gpu.as_ref().and_then(Sensors::driver),
            memory_bytes: gpu.as_ref().and_then(|gpu| gpu.read().memory_size),
            cpu: Device::cpu().name,
            threads: cpu::threads(),
            copy_bytes_per_second: device.memory_bandwidth().map_err(Error::Failed)?,
        })
    }

    /// Returns a name and a value per line.
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

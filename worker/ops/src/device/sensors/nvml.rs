//! Sensors of an NVIDIA GPU, read through NVML.

use nvml_wrapper::{
    Nvml, cuda_driver_version_major, cuda_driver_version_minor,
    enum_wrappers::device::{Clock, TemperatureSensor},
    error::NvmlError,
};

use super::Reading;
use crate::Device;

/// The driver interface of a GPU.
#[derive(Debug)]
pub struct Sensors {
    nvml: Nvml,
    /// PCI bus id. Device numbers differ between the driver and CUDA, which may hide devices.
    pci: String,
}

impl Sensors {
    /// Returns the GPU behind `device`, if it is an NVIDIA GPU. Without NVML there are no readings,
    /// which is logged.
    pub fn of(device: &Device) -> Option<Self> {
        let pci = device.pci.clone()?;
        let open = || {
            let nvml = Nvml::init()?;
            nvml.device_by_pci_bus_id(pci.as_str())?;
            Ok::<_, NvmlError>(nvml)
        };
        match open() {
            Ok(nvml) => Some(Self { nvml, pci }),
            Err(error) => {
                tracing::warn!(%error, pci, "no GPU readings: NVML is not available");
                None
            }
        }
    }

    /// Returns the versions of driver and CUDA, and the power limit of the GPU.
    pub fn driver(&self) -> Option<String> {
        let driver = self.nvml.sys_driver_version().ok()?;
        let cuda = self.nvml.sys_cuda_driver_version().ok()?;
        let (major, minor) = (cuda_driver_version_major(cuda), cuda_driver_version_minor(cuda));
        let limit = self.nvml.device_by_pci_bus_id(self.pci.as_str()).ok()?.enforced_power_limit();
        let limit =
            limit.map_or(String::new(), |mw| format!(", up to {:.0} W", f64::from(mw) / 1e3));
        Some(format!("{driver}, CUDA {major}.{minor}{limit}"))
    }

    /// Returns the bytes of memory that neither a process nor the driver uses.
    pub fn free_memory(&self) -> Option<u64> {
        let device = self.nvml.device_by_pci_bus_id(self.pci.as_str()).ok()?;
        device.memory_info().ok().map(|memory| memory.free)
    }

    /// Reads the driver's sensors.
    pub fn read(&self) -> Reading {
        let Ok(device) = self.nvml.device_by_pci_bus_id(self.pci.as_str()) else {
            return Reading::default();
        };
        let memory = device.memory_info().ok();
        let clock = |clock| device.clock_info(clock).ok().map(|mhz| f64::from(mhz) * 1e6);
        Reading {
            utilization: device.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0),
            memory_used: memory.as_ref().map(|memory| memory.used),
            memory_size: memory.as_ref().map(|memory| memory.total),
            power: device.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1e3),
            temperature: device.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
            clock: clock(Clock::SM),
            memory_clock: clock(Clock::Memory),
        }
    }
}

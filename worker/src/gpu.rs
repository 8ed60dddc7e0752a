//! What NVIDIA's management library says of the GPU that a worker computes on.

use std::fmt;

use nvml_wrapper::{
    Nvml,
    enum_wrappers::device::{Clock, TemperatureSensor},
    error::NvmlError,
};
use prometheus_client::{
    collector::Collector, encoding::DescriptorEncoder, metrics::gauge::ConstGauge,
};
use stoker_ops::Device;
use stoker_shared::telemetry::{metrics::Metric, names::gpu as names};

/// A GPU, as its driver knows it.
#[derive(Debug)]
pub struct Gpu {
    nvml: Nvml,
    /// Where it is on the bus: numbers differ between CUDA, which may hide some, and the driver.
    pci: String,
}

/// What the driver says at one moment. A GPU that cannot tell something leaves it out.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Reading {
    /// The part of the last moments in which some kernel ran, from 0 to 1.
    pub utilization: Option<f64>,
    /// Bytes in use, by anybody.
    pub memory_used: Option<u64>,
    /// Bytes in all.
    pub memory_size: Option<u64>,
    /// Watts.
    pub power: Option<f64>,
    /// Degrees Celsius.
    pub temperature: Option<f64>,
    /// Of its processors, in hertz.
    pub clock: Option<f64>,
    /// Of its memory, in hertz.
    pub memory_clock: Option<f64>,
}

impl Gpu {
    /// The GPU behind `device`, if it is one of NVIDIA's. Without the library there are no readings, which is logged.
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
                tracing::warn!(%error, pci, "no readings of the GPU: NVML does not answer");
                None
            }
        }
    }

    /// What the driver says now.
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

impl Reading {
    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |metric: Metric, value: Option<f64>| match value {
            Some(value) => metric.encode(encoder, &ConstGauge::new(value)),
            None => Ok(()),
        };
        gauge(names::UTILIZATION, self.utilization)?;
        gauge(names::MEMORY_USED, self.memory_used.map(|bytes| bytes as f64))?;
        gauge(names::MEMORY_SIZE, self.memory_size.map(|bytes| bytes as f64))?;
        gauge(names::POWER, self.power)?;
        gauge(names::TEMPERATURE, self.temperature)?;
        gauge(names::CLOCK, self.clock)?;
        gauge(names::MEMORY_CLOCK, self.memory_clock)
    }
}

impl Collector for Gpu {
    /// Asks the driver when somebody looks, so that steps cost nothing.
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.read().encode(&mut encoder)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;
    use stoker_shared::telemetry::metrics::exposition;

    use super::*;

    #[derive(Debug)]
    struct Fixed(Reading);

    impl Collector for Fixed {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            self.0.encode(&mut encoder)
        }
    }

    fn told(reading: Reading) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Fixed(reading)));
        exposition(&registry)
    }

    #[test]
    fn every_name_is_used_and_what_is_not_known_is_left_out() {
        let text = told(Reading {
            utilization: Some(0.75),
            memory_used: Some(3 << 30),
            memory_size: Some(4 << 30),
            power: Some(312.5),
            temperature: Some(61.0),
            clock: Some(1.98e9),
            memory_clock: Some(3.2e9),
        });
        for metric in names::ALL {
            assert!(
                text.contains(&metric.type_line()),
                "{} is not in:\n{text}",
                metric.type_line()
            );
        }
        assert!(text.contains("stoker_gpu_memory_used_bytes 3221225472"), "{text}");
        assert!(text.contains("stoker_gpu_power_watts 312.5"), "{text}");
        let text = told(Reading { power: Some(1.0), ..Reading::default() });
        assert!(
            text.contains("stoker_gpu_power_watts 1") && !text.contains("utilization"),
            "{text}"
        );
    }

    #[test]
    fn a_cpu_has_no_readings() {
        assert!(Gpu::of(&Device::cpu()).is_none());
    }
}

//! Measurements of the GPU that a worker computes on: the driver's sensors and the failures of GPU
//! features.

#[cfg(feature = "cuda")]
mod nvml;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

#[cfg(feature = "cuda")]
pub use nvml::Gpu;
use prometheus_client::{
    collector::Collector,
    encoding::DescriptorEncoder,
    metrics::{counter::Counter, family::Family, gauge::ConstGauge},
    registry::Registry,
};
use serde::{Deserialize, Serialize};
use stoker_ops::{Device, fallback::GpuFeature};
use stoker_shared::telemetry::{
    metrics::Metric,
    names::{gpu as names, label},
};

use crate::memory::{FreeMemory, MemorySource};

/// The driver interface of a GPU. This program was built without one.
#[cfg(not(feature = "cuda"))]
#[derive(Debug)]
pub enum Gpu {}

#[cfg(not(feature = "cuda"))]
impl Gpu {
    /// Returns nothing.
    pub fn of(_: &Device) -> Option<Self> {
        None
    }

    /// Returns the bytes of memory that no process uses.
    pub fn free_memory(&self) -> Option<u64> {
        match *self {}
    }

    /// Returns the version of the driver.
    pub fn driver(&self) -> Option<String> {
        match *self {}
    }

    /// Reads the driver's sensors.
    pub fn read(&self) -> Reading {
        match *self {}
    }
}

/// One reading of the driver's sensors. Values that the GPU does not report are `None`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Reading {
    /// Fraction of the driver's last sample period in which a kernel ran, from 0 to 1.
    pub utilization: Option<f64>,
    /// Memory in use by all processes, in bytes.
    pub memory_used: Option<u64>,
    /// Total memory, in bytes.
    pub memory_size: Option<u64>,
    /// Power draw, in watts.
    pub power: Option<f64>,
    /// Temperature, in degrees Celsius.
    pub temperature: Option<f64>,
    /// Clock of the processors, in hertz.
    pub clock: Option<f64>,
    /// Clock of the memory, in hertz.
    pub memory_clock: Option<f64>,
}

/// Returns the free memory of the GPU, if its driver reports it.
pub(crate) fn free_memory(device: &Device) -> Option<FreeMemory> {
    Some(FreeMemory { bytes: Gpu::of(device)?.free_memory()?, source: MemorySource::Gpu })
}

/// Registers the metrics of `device`, if it is a GPU.
pub(crate) fn register(registry: &mut Registry, device: &Device) {
    if !device.is_cpu() {
        registry.register_collector(Box::new(GpuCollector { gpu: Gpu::of(device) }));
    }
}

/// Reads the sensors on each scrape, so that steps have no overhead.
#[derive(Debug)]
struct GpuCollector {
    gpu: Option<Gpu>,
}

impl Collector for GpuCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let failures = Family::<[(&'static str, &'static str); 1], Counter>::default();
        for feature in GpuFeature::ALL {
            failures.get_or_create(&[(label::FEATURE, feature.name())]).inc_by(feature.failures());
        }
        names::FAILURES.encode(&mut encoder, &failures)?;
        self.gpu.as_ref().map_or(Ok(()), |gpu| gpu.read().encode(&mut encoder))
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

    /// Returns the known values as one line of text, or `None` if there are none.
    pub fn summary(&self) -> Option<String> {
        let values = [
            self.utilization.map(|busy| format!("{:.0} % busy", busy * 100.0)),
            self.power.map(|watts| format!("{watts:.0} W")),
            self.temperature.map(|degrees| format!("{degrees:.0} °C")),
            self.clock.map(|hertz| format!("{:.0} MHz", hertz / 1e6)),
            self.memory_clock.map(|hertz| format!("memory at {:.0} MHz", hertz / 1e6)),
            self.memory_used.map(|bytes| format!("{} MiB in use", bytes >> 20)),
        ];
        let values: Vec<_> = values.into_iter().flatten().collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    /// Aggregates readings: the maximum of memory and temperature, the mean of all other values.
    fn aggregate(readings: &[Self]) -> Self {
        let all =
            |value: fn(&Self) -> Option<f64>| readings.iter().filter_map(value).collect::<Vec<_>>();
        let mean = |value| {
            let values = all(value);
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        Self {
            utilization: mean(|r| r.utilization),
            memory_used: readings.iter().filter_map(|r| r.memory_used).max(),
            memory_size: readings.iter().filter_map(|r| r.memory_size).max(),
            power: mean(|r| r.power),
            temperature: all(|r| r.temperature).into_iter().reduce(f64::max),
            clock: mean(|r| r.clock),
            memory_clock: mean(|r| r.memory_clock),
        }
    }
}

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
        let thread = Gpu::of(device).map(|gpu| {
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
    use stoker_shared::telemetry::metrics::exposition;

    use super::*;

    #[derive(Debug)]
    struct Fixed(Reading);

    impl Collector for Fixed {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            self.0.encode(&mut encoder)
        }
    }

    fn metrics(reading: Reading) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Fixed(reading)));
        registry.register_collector(Box::new(GpuCollector { gpu: None }));
        exposition(&registry)
    }

    #[test]
    fn all_metrics_are_exposed_and_unknown_values_are_omitted() {
        let text = metrics(Reading {
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
        for line in [
            "stoker_gpu_memory_used_bytes 3221225472",
            "stoker_gpu_power_watts 312.5",
            "stoker_gpu_failures_total{feature=\"graphs\"} 0",
            "stoker_gpu_failures_total{feature=\"tensor-cores\"} 0",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
        let text = metrics(Reading { power: Some(1.0), ..Reading::default() });
        assert!(
            text.contains("stoker_gpu_power_watts 1") && !text.contains("utilization"),
            "{text}"
        );
    }

    #[test]
    fn a_cpu_has_no_readings() {
        assert!(Gpu::of(&Device::cpu()).is_none());
        assert_eq!(Meter::begin(&Device::cpu()).end(), Reading::default());
        let mut registry = Registry::default();
        register(&mut registry, &Device::cpu());
        assert!(!exposition(&registry).contains("stoker_gpu"));
    }

    #[test]
    fn a_summary_lists_the_known_values() {
        assert_eq!(Reading::default().summary(), None);
        let reading = Reading { power: Some(412.4), clock: Some(1.98e9), ..Reading::default() };
        assert_eq!(reading.summary().as_deref(), Some("412 W, 1980 MHz"));
    }

    #[test]
    fn readings_are_aggregated_by_mean_and_memory_and_temperature_by_maximum() {
        let reading = |power, temperature, memory_used| Reading {
            power: Some(power),
            temperature: Some(temperature),
            memory_used: Some(memory_used),
            ..Reading::default()
        };
        let readings = [reading(100.0, 40.0, 7), reading(300.0, 60.0, 5), Reading::default()];
        assert_eq!(Reading::aggregate(&readings), reading(200.0, 60.0, 7));
    }
}

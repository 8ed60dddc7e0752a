//! What there is to say of the GPU that a worker computes on: what its driver reads, and what it does without.

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

use crate::memory::{FreeMemory, Memory};

/// A GPU, as its driver knows it: this program was built without any that could be asked.
#[cfg(not(feature = "cuda"))]
#[derive(Debug)]
pub enum Gpu {}

#[cfg(not(feature = "cuda"))]
impl Gpu {
    /// None.
    pub fn of(_: &Device) -> Option<Self> {
        None
    }

    /// Bytes that nobody uses.
    pub fn free_memory(&self) -> Option<u64> {
        match *self {}
    }

    /// What the driver calls itself.
    pub fn driver(&self) -> Option<String> {
        match *self {}
    }

    /// What the driver says now.
    pub fn read(&self) -> Reading {
        match *self {}
    }
}

/// What the driver says at one moment. A GPU that cannot tell something leaves it out.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
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

/// What is free on the GPU, where its driver can be asked.
pub(crate) fn free(device: &Device) -> Option<FreeMemory> {
    Some(FreeMemory { bytes: Gpu::of(device)?.free_memory()?, of: Memory::Gpu })
}

/// Adds what is said of `device` to `registry`, if it is a GPU.
pub(crate) fn register(registry: &mut Registry, device: &Device) {
    if !device.is_cpu() {
        registry.register_collector(Box::new(Told { gpu: Gpu::of(device) }));
    }
}

/// Looks when somebody asks, so that steps cost nothing.
#[derive(Debug)]
struct Told {
    gpu: Option<Gpu>,
}

impl Collector for Told {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let failures = Family::<[(&'static str, &'static str); 1], Counter>::default();
        for part in GpuFeature::ALL {
            failures.get_or_create(&[(label::FEATURE, part.name())]).inc_by(part.failures());
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

    /// For people, on one line; none where nothing is known.
    pub fn summary(&self) -> Option<String> {
        let told = [
            self.utilization.map(|busy| format!("{:.0} % busy", busy * 100.0)),
            self.power.map(|watts| format!("{watts:.0} W")),
            self.temperature.map(|degrees| format!("{degrees:.0} °C")),
            self.clock.map(|hertz| format!("{:.0} MHz", hertz / 1e6)),
            self.memory_clock.map(|hertz| format!("memory at {:.0} MHz", hertz / 1e6)),
            self.memory_used.map(|bytes| format!("{} MiB in use", bytes >> 20)),
        ];
        let told: Vec<_> = told.into_iter().flatten().collect();
        (!told.is_empty()).then(|| told.join(", "))
    }

    /// The means of some, and of memory and temperature the most.
    fn over(readings: &[Self]) -> Self {
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

/// Reads a GPU again and again while something is measured.
pub(crate) struct Meter {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Reading>>>,
}

impl Meter {
    /// Begins, if the driver can be asked.
    pub(crate) fn begin(device: &Device) -> Self {
        const PAUSE: Duration = Duration::from_millis(100);
        let over = Arc::new(AtomicBool::new(false));
        let thread = Gpu::of(device).map(|gpu| {
            let over = Arc::clone(&over);
            thread::spawn(move || {
                let mut readings = vec![gpu.read()];
                while !over.load(Ordering::Relaxed) {
                    thread::park_timeout(PAUSE);
                    readings.push(gpu.read());
                }
                readings
            })
        });
        Self { over, thread }
    }

    /// What it was meanwhile.
    pub(crate) fn end(mut self) -> Reading {
        self.over.store(true, Ordering::Relaxed);
        let readings = self.thread.take().map(|thread| {
            thread.thread().unpark();
            thread.join().unwrap_or_default()
        });
        Reading::over(&readings.unwrap_or_default())
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

    fn told(reading: Reading) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Fixed(reading)));
        registry.register_collector(Box::new(Told { gpu: None }));
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
        for line in [
            "stoker_gpu_memory_used_bytes 3221225472",
            "stoker_gpu_power_watts 312.5",
            "stoker_gpu_failures_total{part=\"graphs\"} 0",
            "stoker_gpu_failures_total{part=\"tensor-cores\"} 0",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
        let text = told(Reading { power: Some(1.0), ..Reading::default() });
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
    fn a_summary_says_what_is_known() {
        assert_eq!(Reading::default().summary(), None);
        let reading = Reading { power: Some(412.4), clock: Some(1.98e9), ..Reading::default() };
        assert_eq!(reading.summary().as_deref(), Some("412 W, 1980 MHz"));
    }

    #[test]
    fn of_several_readings_the_mean_counts_and_of_memory_and_heat_the_most() {
        let reading = |power, temperature, memory_used| Reading {
            power: Some(power),
            temperature: Some(temperature),
            memory_used: Some(memory_used),
            ..Reading::default()
        };
        let over =
            Reading::over(&[reading(100.0, 40.0, 7), reading(300.0, 60.0, 5), Reading::default()]);
        assert_eq!(over, reading(200.0, 60.0, 7));
    }
}

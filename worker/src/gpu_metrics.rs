//! Metrics of the GPU that a worker computes on: the driver's sensors and the failures of GPU
//! features.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::DescriptorEncoder,
    metrics::{counter::Counter, family::Family, gauge::ConstGauge},
    registry::Registry,
};
use stoker_ops::{
    Device,
    device::sensors::{Reading, Sensors},
    fallback::GpuFeature,
};
use stoker_shared::{
    metrics::Metric,
    names::{gpu as names, label},
};

/// Registers the metrics of `device`, if it is a GPU.
pub(crate) fn register(registry: &mut Registry, device: &Device) {
    if !device.is_cpu() {
        registry.register_collector(Box::new(GpuCollector { sensors: Sensors::of(device) }));
    }
}

/// Reads the sensors on each scrape, so that steps have no overhead.
#[derive(Debug)]
struct GpuCollector {
    sensors: Option<Sensors>,
}

impl Collector for GpuCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let failures = Family::<[(&'static str, &'static str); 1], Counter>::default();
        for feature in GpuFeature::ALL {
            failures.get_or_create(&[(label::FEATURE, feature.name())]).inc_by(feature.failures());
        }
        names::FAILURES.encode(&mut encoder, &failures)?;
        self.sensors.as_ref().map_or(Ok(()), |sensors| encode(&sensors.read(), &mut encoder))
    }
}

fn encode(reading: &Reading, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut gauge = |metric: Metric, value: Option<f64>| match value {
        Some(value) => metric.encode(encoder, &ConstGauge::new(value)),
        None => Ok(()),
    };
    gauge(names::UTILIZATION, reading.utilization)?;
    gauge(names::MEMORY_USED, reading.memory_used.map(|bytes| bytes as f64))?;
    gauge(names::MEMORY_SIZE, reading.memory_size.map(|bytes| bytes as f64))?;
    gauge(names::POWER, reading.power)?;
    gauge(names::TEMPERATURE, reading.temperature)?;
    gauge(names::CLOCK, reading.clock)?;
    gauge(names::MEMORY_CLOCK, reading.memory_clock)
}

#[cfg(test)]
mod tests {
    use stoker_shared::metrics::exposition;

    use super::*;

    #[derive(Debug)]
    struct Fixed(Reading);

    impl Collector for Fixed {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            encode(&self.0, &mut encoder)
        }
    }

    fn metrics(reading: Reading) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Fixed(reading)));
        registry.register_collector(Box::new(GpuCollector { sensors: None }));
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
    fn a_cpu_has_no_gpu_metrics() {
        assert!(Sensors::of(&Device::cpu()).is_none());
        let mut registry = Registry::default();
        register(&mut registry, &Device::cpu());
        assert!(!exposition(&registry).contains("stoker_gpu"));
    }
}

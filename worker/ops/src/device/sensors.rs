//! Sensors of a GPU, as its driver reports them.

#[cfg(feature = "cuda")]
mod nvml;

#[cfg(feature = "cuda")]
pub use nvml::Sensors;
use serde::{Deserialize, Serialize};

#[cfg(not(feature = "cuda"))]
use super::Device;

/// The driver interface of a GPU. This program was built without one.
#[cfg(not(feature = "cuda"))]
#[derive(Debug)]
pub enum Sensors {}

#[cfg(not(feature = "cuda"))]
impl Sensors {
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

impl Reading {
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

    /// Returns the maximum of memory and temperature, and the mean of all other values.
    pub fn aggregate(readings: &[Self]) -> Self {
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

#[cfg(test)]
mod tests {
    use super::*;

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

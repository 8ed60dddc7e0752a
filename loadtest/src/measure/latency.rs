//! Histograms of latencies.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Maximum of the histograms, in microseconds: one hour. Larger values are recorded as this.
const MAX_MICROS: u64 = 3_600_000_000;
/// Significant decimal digits of percentiles.
const DIGITS: u8 = 3;
/// The same where there are many histograms.
const COARSE_DIGITS: u8 = 2;

/// A histogram of microseconds.
#[derive(Debug, Clone)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        Self::new(DIGITS)
    }
}

impl Latency {
    /// Creates a histogram with two significant digits, which takes an eighth of the memory.
    pub fn coarse() -> Self {
        Self::new(COARSE_DIGITS)
    }

    fn new(digits: u8) -> Self {
        // Grows with the largest value. Fails only on invalid bounds.
        let mut histogram =
            Histogram::new_with_bounds(1, 2, digits).expect("the bounds are constants");
        histogram.auto(true);
        Self(histogram)
    }

    /// Adds a value.
    pub fn add(&mut self, time: Duration) {
        self.add_micros(u64::try_from(time.as_micros()).unwrap_or(MAX_MICROS));
    }

    /// Adds a value in microseconds.
    pub fn add_micros(&mut self, micros: u64) {
        // Does not fail: the histogram grows up to the maximum.
        let _ = self.0.record(micros.min(MAX_MICROS));
    }

    /// Adds the values of another histogram.
    pub fn merge(&mut self, other: &Self) {
        let _ = self.0.add(&other.0);
    }

    /// Returns the number of values.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Returns the value below which this share of values is, in seconds. `None` without values.
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.value_at_quantile(quantile) as f64 / 1e6)
    }

    /// Returns the histogram, in microseconds.
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_three_digits_and_are_merged() {
        let mut all = Latency::default();
        assert_eq!(all.quantile(0.5), None);
        for micros in [0, 1, 1_234_567, u64::MAX] {
            let mut one = Latency::default();
            one.add_micros(micros);
            all.merge(&one);
        }
        assert_eq!(all.count(), 4);
        assert_eq!(all.quantile(0.0), Some(0.0));
        let third = all.quantile(0.75).unwrap_or_default();
        assert!((third - 1.234_567).abs() < 0.001_3, "{third}");
        let max = all.quantile(1.0).unwrap_or_default();
        assert!((max / 3_600.0 - 1.0).abs() < 0.001, "{max}");
    }
}

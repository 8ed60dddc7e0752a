//! Confidence intervals of a ratio: of runs where both sides have several, else of the parts of a run.
//!
//! Requests that follow each other are alike, since they wait for the same steps and queues. So blocks of
//! consecutive ones are drawn again, not single ones, which would give intervals that are too narrow.

use super::{
    metric::{Metric, Parts},
    runs::Side,
};
use crate::{report::summary::Summary, rng::SeededRng, stats};

/// How often a run is drawn again from its parts.
const RESAMPLES: u64 = 1_000;
/// Fewer parts say nothing.
const MIN_PARTS: usize = 16;

/// A ratio with its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Interval {
    /// Its lower end.
    pub low: f64,
    /// The ratio.
    pub middle: f64,
    /// Its upper end.
    pub high: f64,
}

/// Returns the ratio of `new` to `base`. `None` if there is too little data.
pub(super) fn ratio(
    metric: &Metric,
    base: &Side,
    new: &Side,
    bases: &[f64],
    news: &[f64],
) -> Option<Interval> {
    if bases.iter().chain(news).any(|value| *value <= 0.0) {
        return None;
    }
    let logs = |values: &[f64]| values.iter().map(|value| value.ln()).collect::<Vec<_>>();
    let (a, b) = (logs(bases), logs(news));
    let middle = stats::mean(&b) - stats::mean(&a);
    let (low, high) = if a.len() > 1 && b.len() > 1 {
        stats::difference(&a, &b)?
    } else {
        of_parts(metric, base, new, middle)?
    };
    Some(Interval { low: low.exp(), middle: middle.exp(), high: high.exp() })
}

/// Returns the interval of the difference of logarithms, by drawing the parts of all runs again.
fn of_parts(metric: &Metric, base: &Side, new: &Side, middle: f64) -> Option<(f64, f64)> {
    let (base, new) = (parts(metric, base)?, parts(metric, new)?);
    let mut differences = Vec::new();
    for i in 0..RESAMPLES {
        let of = |purpose, parts: &[f64]| {
            resample(metric, parts, &mut SeededRng::new(purpose, 0, i)).filter(|value| *value > 0.0)
        };
        if let (Some(a), Some(b)) = (of("compare base", &base), of("compare new", &new)) {
            differences.push(b.ln() - a.ln());
        }
    }
    if (differences.len() as u64) < RESAMPLES / 2 {
        return None;
    }
    let (low, high) =
        (stats::quantile(&mut differences, 0.025)?, stats::quantile(&mut differences, 0.975)?);
    // A sample has only some of the requests. The interval includes what all of them give.
    Some((low.min(middle), high.max(middle)))
}

fn parts(metric: &Metric, side: &Side) -> Option<Vec<f64>> {
    let of = |run: &Summary| -> Vec<f64> {
        match &metric.parts {
            Parts::MeanOfSlices(value) => run.slices.iter().map(value).collect(),
            Parts::QuantileOfRequests(values, _) | Parts::MeanOfRequests(values) => values(run),
        }
    };
    Some(side.runs.iter().flat_map(of).collect::<Vec<_>>()).filter(|parts| parts.len() >= MIN_PARTS)
}

/// Computes the metric of blocks of consecutive parts that are drawn with replacement.
fn resample(metric: &Metric, parts: &[f64], rng: &mut SeededRng) -> Option<f64> {
    let n = parts.len();
    let block = (n as f64).sqrt().ceil() as usize;
    let mut drawn = Vec::with_capacity(n + block);
    while drawn.len() < n {
        let start = rng.below(u32::try_from(n).ok()?) as usize;
        drawn.extend((0..block).map(|i| parts[(start + i) % n]));
    }
    drawn.truncate(n);
    match metric.parts {
        Parts::QuantileOfRequests(_, q) => stats::quantile(&mut drawn, q),
        Parts::MeanOfSlices(_) | Parts::MeanOfRequests(_) => Some(stats::mean(&drawn)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::compare::metric::METRICS;

    #[test]
    fn consecutive_values_that_are_alike_widen_the_interval() {
        let mean = METRICS.iter().find(|metric| metric.name == "requests served").unwrap();
        let spread = |parts: &[f64]| {
            let mut all: Vec<_> = (0..RESAMPLES)
                .map(|i| resample(mean, parts, &mut SeededRng::new("test", 1, i)).unwrap())
                .collect();
            stats::quantile(&mut all, 0.975).unwrap() - stats::quantile(&mut all, 0.025).unwrap()
        };
        let alternating: Vec<_> = (0..400).map(|i| f64::from(i % 2)).collect();
        let in_blocks: Vec<_> = (0..400).map(|i| f64::from(i / 20 % 2)).collect();
        assert!(spread(&in_blocks) > 5.0 * spread(&alternating));
    }
}

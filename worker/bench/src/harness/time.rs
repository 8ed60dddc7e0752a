//! Durations of steps.

use std::time::Duration;

/// Returns the share of `time` spent outside operations. None if operations are not timed.
pub(crate) fn overhead(kernels: Duration, time: Duration) -> Option<f64> {
    let counted = !kernels.is_zero() && !time.is_zero();
    counted.then(|| 1.0 - kernels.as_secs_f64() / time.as_secs_f64())
}

/// Returns the median of `times`. For an even number it is the mean of the middle two.
pub(crate) fn median(times: &mut [Duration]) -> Option<Duration> {
    times.sort_unstable();
    let (low, high) = (times.get(times.len().checked_sub(1)? / 2)?, times.get(times.len() / 2)?);
    Some((*low + *high) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_value_or_the_mean_of_two() {
        let median = |times: &[u64]| {
            let mut times: Vec<_> = times.iter().copied().map(Duration::from_secs).collect();
            median(&mut times).map(|time| time.as_secs())
        };
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3]), Some(3));
        assert_eq!(median(&[9, 1, 5]), Some(5));
        assert_eq!(median(&[8, 2, 4, 100]), Some(6));
    }

    #[test]
    fn overhead_is_the_time_outside_operations() {
        let seconds = Duration::from_secs;
        assert_eq!(overhead(seconds(3), seconds(4)), Some(0.25));
        assert_eq!(overhead(Duration::ZERO, seconds(4)), None);
    }
}

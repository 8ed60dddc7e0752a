//! Confidence intervals.

/// 97.5 % quantiles of Student's t distribution for 1 to 30 degrees of freedom.
const T_975: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
];
/// The same for a normal distribution.
const Z_975: f64 = 1.96;

/// Returns the mean. Zero without values.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Returns half of the 95 % confidence interval of the mean. `None` with fewer than two values.
pub fn margin(values: &[f64]) -> Option<f64> {
    let n = values.len();
    Some(t_975((n.checked_sub(1)?) as f64)? * (variance(values)? / n as f64).sqrt())
}

/// Returns the 95 % confidence interval of the difference of two means, `b` less `a`, whose variances
/// may differ (Welch). `None` unless both have two values.
pub fn difference(a: &[f64], b: &[f64]) -> Option<(f64, f64)> {
    let of = |values: &[f64]| Some((variance(values)? / values.len() as f64, values.len() as f64));
    let ((va, na), (vb, nb)) = (of(a)?, of(b)?);
    let sum = va + vb;
    let middle = mean(b) - mean(a);
    if sum == 0.0 {
        return Some((middle, middle));
    }
    let degrees = sum * sum / (va * va / (na - 1.0) + vb * vb / (nb - 1.0));
    let margin = t_975(degrees)? * sum.sqrt();
    Some((middle - margin, middle + margin))
}

/// Returns the value below which this share of values is. `None` without values.
pub fn quantile(values: &mut [f64], quantile: f64) -> Option<f64> {
    let last = values.len().checked_sub(1)?;
    let index = (quantile * last as f64).round() as usize;
    Some(*values.select_nth_unstable_by(index, f64::total_cmp).1)
}

fn variance(values: &[f64]) -> Option<f64> {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (values.len() >= 2).then(|| squares / (values.len() - 1) as f64)
}

/// Degrees are rounded down, so that intervals are rather too wide.
fn t_975(degrees: f64) -> Option<f64> {
    let degrees = degrees.floor();
    if degrees < 1.0 {
        return None;
    }
    Some(T_975.get(degrees as usize - 1).copied().unwrap_or(Z_975 + 2.5 / degrees))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn intervals_are_those_of_the_textbook() {
        // Mean 5, standard deviation 2, n = 4: 3.182 * 2 / 2.
        let values = [3.0, 3.0, 7.0, 7.0];
        let deviation = variance(&values).unwrap().sqrt();
        assert!((margin(&values).unwrap() - 3.182 * deviation / 2.0).abs() < 1e-9);
        assert_eq!((margin(&[1.0]), margin(&[]), margin(&[2.0, 2.0])), (None, None, Some(0.0)));
        // Equal sizes and variances: 2n - 2 degrees of freedom.
        let other = values.map(|value| value + 10.0);
        let (low, high) = difference(&values, &other).unwrap();
        let half = 2.447 * (2.0 * deviation * deviation / 4.0).sqrt();
        assert!((low - (10.0 - half)).abs() < 1e-9 && (high - (10.0 + half)).abs() < 1e-9);
        assert_eq!(difference(&[1.0], &values), None);
        assert_eq!(difference(&[1.0, 1.0], &[3.0, 3.0]), Some((2.0, 2.0)));
        assert!((t_975(31.0).unwrap() - 2.040).abs() < 0.005);
        assert!((t_975(1e6).unwrap() - 1.96).abs() < 0.001);
    }

    #[test]
    fn quantiles_are_values() {
        let mut values = [5.0, 1.0, 3.0, 2.0, 4.0];
        assert_eq!(quantile(&mut values, 0.0), Some(1.0));
        assert_eq!(quantile(&mut values, 0.5), Some(3.0));
        assert_eq!(quantile(&mut values, 1.0), Some(5.0));
        assert_eq!(quantile(&mut [], 0.5), None);
    }
}

//! How evenly requests arrive at a given rate.

use std::{fmt, str::FromStr};

use crate::rng::SeededRng;

const USAGE: &str = "write poisson, constant, gamma:CV (a coefficient of variation, from 0.05 to 20), or \
                     burst:COUNT";

/// An arrival process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ArrivalProcess {
    /// Independent arrivals, as of many clients that do not know of each other.
    Poisson,
    /// Equal intervals.
    Constant,
    /// Intervals of a gamma distribution with this coefficient of variation: 1 is a Poisson process,
    /// above it arrivals are in clusters, below it they are more even.
    Gamma {
        /// Standard deviation divided by the mean.
        cv: f64,
    },
    /// This many requests at once, at equal intervals.
    Burst {
        /// Number of requests.
        count: u32,
    },
}

impl ArrivalProcess {
    /// Returns the interval before request `index`, in units of the mean interval. The same in every
    /// run.
    pub fn interval(self, seed: u64, index: u64) -> f64 {
        let mut rng = SeededRng::new("pause", seed, index);
        match self {
            Self::Poisson => -rng.unit().ln(),
            Self::Constant => 1.0,
            Self::Gamma { cv } => {
                // Of mean 1.
                let shape = 1.0 / (cv * cv);
                gamma(shape, &mut rng) / shape
            }
            Self::Burst { count } if index.is_multiple_of(count.into()) => f64::from(count),
            Self::Burst { .. } => 0.0,
        }
    }
}

/// Draws from a gamma distribution of scale 1, by the method of Marsaglia and Tsang.
fn gamma(shape: f64, rng: &mut SeededRng) -> f64 {
    if shape < 1.0 {
        return gamma(shape + 1.0, rng) * rng.unit().powf(1.0 / shape);
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        // A normal number, by the method of Box and Muller.
        let radius = (-2.0 * rng.unit().ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * rng.unit()).cos();
        let v = (1.0 + c * normal).powi(3);
        if v > 0.0 && rng.unit().ln() < 0.5 * normal * normal + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

impl FromStr for ArrivalProcess {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = match text.split_once(':') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        match (name, value) {
            ("poisson", None) => Ok(Self::Poisson),
            ("constant", None) => Ok(Self::Constant),
            ("gamma", Some(cv)) => match cv.parse() {
                Ok(cv) if (0.05..=20.0).contains(&cv) => Ok(Self::Gamma { cv }),
                _ => Err(USAGE),
            },
            ("burst", Some(count)) => match count.parse() {
                Ok(count @ 1..) => Ok(Self::Burst { count }),
                _ => Err(USAGE),
            },
            _ => Err(USAGE),
        }
    }
}

impl fmt::Display for ArrivalProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Poisson => f.write_str("poisson"),
            Self::Constant => f.write_str("constant"),
            Self::Gamma { cv } => write!(f, "gamma:{cv}"),
            Self::Burst { count } => write!(f, "burst:{count}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn intervals_have_the_mean_1_and_the_expected_deviation() {
        for (text, deviation) in [
            ("poisson", 1.0),
            ("constant", 0.0),
            ("gamma:0.5", 0.5),
            ("gamma:1", 1.0),
            ("gamma:3", 3.0),
            // 9 of 10 intervals are 0, the tenth is 10.
            ("burst:10", 3.0),
        ] {
            let process: ArrivalProcess = text.parse().unwrap();
            assert_eq!(process.to_string(), text);
            let count = 50_000;
            let intervals: Vec<f64> = (0..count).map(|i| process.interval(1, i)).collect();
            assert!(intervals.iter().all(|interval| *interval >= 0.0 && interval.is_finite()));
            let mean = intervals.iter().sum::<f64>() / count as f64;
            let squares: f64 = intervals.iter().map(|i| (i - mean).powi(2)).sum();
            let found = (squares / count as f64).sqrt();
            assert!((mean - 1.0).abs() < 0.05, "{text}: {mean}");
            assert!((found - deviation).abs() < 0.05 * deviation.max(0.01), "{text}: {found}");
        }
    }

    #[test]
    fn other_names_and_values_are_refused() {
        for bad in [
            "",
            "uniform",
            "gamma",
            "gamma:0",
            "gamma:x",
            "gamma:21",
            "burst:0",
            "burst",
            "poisson:1",
        ] {
            assert!(bad.parse::<ArrivalProcess>().is_err(), "{bad:?}");
        }
    }
}

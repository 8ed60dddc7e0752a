//! How many requests arrive per second, as a function of time: one rate, or stages of rates and
//! ramps.

use std::{fmt, str::FromStr, time::Duration};

use stoker_shared::duration;

const USAGE: &str = "write requests per second, from 0.001 to 1000000, or stages with their \
                     times, as in 10:30s,10-50:1m,0:10s";

/// A rate over time: `20`, or stages `RATE:TIME` and ramps `FROM-TO:TIME`, separated by commas.
#[derive(Debug, Clone, PartialEq)]
pub struct RateProfile(Vec<Stage>);

/// A part of a profile, during which the rate changes linearly.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Stage {
    /// Requests per second at its begin and end.
    from: f64,
    to: f64,
    /// `None` if it does not end.
    time: Option<Duration>,
}

impl RateProfile {
    /// Returns the profile of one rate, in requests per second.
    pub fn constant(rate: f64) -> Self {
        Self(vec![Stage { from: rate, to: rate, time: None }])
    }

    /// Returns the time of all stages; `None` if the last one does not end.
    pub fn total(&self) -> Option<Duration> {
        self.0.iter().map(|stage| stage.time).sum()
    }

    /// Returns the time at which `count` requests are expected to have arrived; `None` if they never
    /// do.
    pub fn time_of(&self, count: f64) -> Option<Duration> {
        let (mut remaining, mut began) = (count, 0.0);
        for stage in &self.0 {
            let expected = stage.expected();
            if expected.is_none_or(|expected| remaining < expected) {
                return Duration::try_from_secs_f64(began + stage.time_of(remaining)).ok();
            }
            remaining -= expected.unwrap_or_default();
            began += stage.time.unwrap_or_default().as_secs_f64();
        }
        None
    }
}

impl Stage {
    /// Returns the expected number of requests; `None` if it does not end.
    fn expected(&self) -> Option<f64> {
        Some((self.from + self.to) / 2.0 * self.time?.as_secs_f64())
    }

    /// Returns the seconds after which `count` requests are expected, which are fewer than all.
    fn time_of(&self, count: f64) -> f64 {
        let time = self.time.map_or(f64::INFINITY, |time| time.as_secs_f64());
        let slope = (self.to - self.from) / time;
        if slope == 0.0 {
            return count / self.from;
        }
        // The integral of the rate, from * t + slope / 2 * t^2, is solved for t.
        let root = (self.from * self.from + 2.0 * slope * count).max(0.0).sqrt();
        (root - self.from) / slope
    }
}

impl FromStr for RateProfile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| match part.parse::<f64>() {
            Ok(rate) if rate == 0.0 || (0.001..=1e6).contains(&rate) => Ok(rate),
            _ => Err(format!("{part:?} is no rate; {USAGE}")),
        };
        let stage = |part: &str| {
            let (rates, time) = match part.split_once(':') {
                Some((rates, time)) => (rates, Some(time)),
                None => (part, None),
            };
            let (from, to) = rates.split_once('-').unwrap_or((rates, rates));
            let time = time.map(|time| {
                let parsed = duration::parse(time).map_err(|why| format!("{time:?}: {why}"))?;
                if parsed.is_zero() { Err(format!("{part:?} takes no time")) } else { Ok(parsed) }
            });
            let stage = Stage { from: number(from)?, to: number(to)?, time: time.transpose()? };
            if stage.from != stage.to && stage.time.is_none() {
                return Err(format!("the ramp {part:?} has no time; {USAGE}"));
            }
            Ok(stage)
        };
        let stages = text.split(',').map(stage).collect::<Result<Vec<_>, _>>()?;
        let all_but_last = &stages[..stages.len() - 1];
        if all_but_last.iter().any(|stage| stage.time.is_none()) {
            return Err(format!("only the last stage may have no time; {USAGE}"));
        }
        if stages.iter().all(|stage| stage.from == 0.0 && stage.to == 0.0)
            || stages.last().is_some_and(|stage| stage.time.is_none() && stage.from == 0.0)
        {
            return Err(format!("{text:?} sends no requests; {USAGE}"));
        }
        Ok(Self(stages))
    }
}

impl fmt::Display for RateProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Stage { from, to, time }) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{from}")?;
            if to != from {
                write!(f, "-{to}")?;
            }
            // As `duration::parse` reads it: whole numbers.
            match time {
                Some(time) if time.subsec_nanos() == 0 => write!(f, ":{}s", time.as_secs())?,
                Some(time) if time.subsec_nanos().is_multiple_of(1_000_000) => {
                    write!(f, ":{}ms", time.as_millis())?;
                }
                Some(time) => write!(f, ":{}ns", time.as_nanos())?,
                None => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn at(profile: &str, count: f64) -> Option<f64> {
        let profile: RateProfile = profile.parse().unwrap();
        profile.time_of(count).map(|time| (time.as_secs_f64() * 1e6).round() / 1e6)
    }

    #[test]
    fn requests_arrive_as_the_rate_says() {
        assert_eq!(at("20", 5.0), Some(0.25));
        // 10 requests in the first stage, and the others at 2 per second.
        assert_eq!(at("1:10s,2", 14.0), Some(12.0));
        // A ramp from 0 to 10 in 10 s has 50 requests, a quarter of them in the first half.
        assert_eq!((at("0-10:10s", 12.5), at("0-10:10s", 49.999_999)), (Some(5.0), Some(10.0)));
        assert_eq!(at("10-0:10s", 37.5), Some(5.0));
        // Nothing arrives in a pause.
        assert_eq!(at("1:5s,0:5s,1:5s", 5.5), Some(10.5));
        assert_eq!(at("1:5s", 5.0), None, "there are no more");
    }

    #[test]
    fn profiles_round_trip_through_text() {
        for text in ["20", "0.5", "10:30s,10-50:60s,0:10s", "0-50:1500ms", "5:1500000001ns"] {
            assert_eq!(text.parse::<RateProfile>().unwrap().to_string(), text);
        }
        let total = |text: &str| text.parse::<RateProfile>().unwrap().total();
        assert_eq!((total("1:30s,2:1m"), total("1:30s,2")), (Some(Duration::from_secs(90)), None));
    }

    #[test]
    fn errors_name_the_part() {
        for (text, part) in [
            ("", "\"\" is no rate"),
            ("0", "sends no requests"),
            ("0:5s,0:1s", "sends no requests"),
            ("inf", "\"inf\" is no rate"),
            ("1,2", "only the last stage"),
            ("1-2", "ramp \"1-2\" has no time"),
            ("1:5", "\"5\""),
            ("1:0s", "takes no time"),
            ("1:5s,x:5s", "\"x\" is no rate"),
            ("1:5s,", "\"\" is no rate"),
            ("-1", "\"\" is no rate"),
            ("1e9", "0.001"),
        ] {
            let error = text.parse::<RateProfile>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}

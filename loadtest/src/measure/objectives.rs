//! Objectives of latency, and how many responses meet them.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use stoker_shared::duration;

const USAGE: &str = "write ttft=TIME (to the first token), itl=TIME (mean between tokens) and \
                     e2e=TIME (end to end), separated by commas, as in ttft=500ms,itl=50ms";

/// What a response must not exceed: `ttft=500ms,itl=50ms,e2e=10s`, or some of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Objectives {
    /// Time to the first token.
    pub ttft: Option<Duration>,
    /// Mean time between two tokens of a response.
    pub itl: Option<Duration>,
    /// Time to the last event.
    pub e2e: Option<Duration>,
}

/// Number of complete responses that met all objectives, and that missed each of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectiveCounts {
    /// Responses that met all of them.
    pub met: u64,
    /// Responses that missed the time to the first token.
    pub missed_ttft: u64,
    /// Responses that missed the mean time between tokens.
    pub missed_itl: u64,
    /// Responses that missed the time to the last event.
    pub missed_e2e: u64,
}

impl Objectives {
    /// Returns whether a complete response misses the times to the first token, between tokens, and to
    /// the last event. What it does not have, it does not miss: a single token has no time between
    /// tokens.
    pub fn misses(
        &self,
        ttft: Option<Duration>,
        itl: Option<Duration>,
        e2e: Duration,
    ) -> [bool; 3] {
        let misses = |limit: Option<Duration>, time: Option<Duration>| {
            limit.zip(time).is_some_and(|(limit, time)| time > limit)
        };
        [misses(self.ttft, ttft), misses(self.itl, itl), misses(self.e2e, Some(e2e))]
    }
}

impl ObjectiveCounts {
    /// Counts a complete response by what it misses. Returns whether it meets all objectives.
    pub fn add(&mut self, missed: [bool; 3]) -> bool {
        let counts = [&mut self.missed_ttft, &mut self.missed_itl, &mut self.missed_e2e];
        for (count, missed) in counts.into_iter().zip(missed) {
            *count += u64::from(missed);
        }
        let met = missed == [false; 3];
        self.met += u64::from(met);
        met
    }
}

impl FromStr for Objectives {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut objectives = Self::default();
        for part in text.split(',') {
            let (name, time) = part.split_once('=').ok_or_else(|| format!("{part:?}: {USAGE}"))?;
            let objective = match name.trim() {
                "ttft" => &mut objectives.ttft,
                "itl" => &mut objectives.itl,
                "e2e" => &mut objectives.e2e,
                other => return Err(format!("{other:?} is no objective; {USAGE}")),
            };
            let limit =
                duration::parse_positive(time.trim()).map_err(|why| format!("{part:?}: {why}"))?;
            if objective.replace(limit).is_some() {
                return Err(format!("{name} is given twice"));
            }
        }
        Ok(objectives)
    }
}

impl fmt::Display for Objectives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [("ttft", self.ttft), ("itl", self.itl), ("e2e", self.e2e)];
        let given = all.iter().filter_map(|(name, time)| Some(format!("{name}={:?}", (*time)?)));
        f.write_str(&given.collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_response_meets_all_objectives_or_misses_some() {
        let objectives: Objectives = "ttft=500ms,itl=50ms".parse().unwrap();
        assert_eq!(objectives.to_string(), "ttft=500ms,itl=50ms");
        let mut counts = ObjectiveCounts::default();
        counts.add(objectives.misses(Some(ms(500)), Some(ms(50)), ms(9_000)));
        counts.add(objectives.misses(Some(ms(501)), None, ms(501)));
        counts.add(objectives.misses(Some(ms(501)), Some(ms(51)), ms(600)));
        counts.add(objectives.misses(None, None, ms(1)));
        let expected = ObjectiveCounts { met: 2, missed_ttft: 2, missed_itl: 1, missed_e2e: 0 };
        assert_eq!(counts, expected);
    }

    #[test]
    fn errors_name_the_part() {
        for (text, part) in [
            ("", "ttft=TIME"),
            ("ttft", "\"ttft\""),
            ("ttft=", "\"ttft=\""),
            ("ttft=5", "\"ttft=5\""),
            ("tpot=5ms", "\"tpot\" is no objective"),
            ("itl=5ms,itl=6ms", "itl is given twice"),
        ] {
            let error = text.parse::<Objectives>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}

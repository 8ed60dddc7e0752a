//! Whether the load test itself has spoiled what it measured.

use std::{num::NonZeroUsize, thread::available_parallelism, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{drive::driver::DriverStats, report::latency::Percentiles};

/// How late the driver may be in the 99th percentile, where this is more than [`SHARE_OF_TTFT`].
const MIN_LIMIT: Duration = Duration::from_millis(25);
/// The same as a share of the median time to the first token.
const SHARE_OF_TTFT: f64 = 0.1;
/// Share of requests that may wait for a free stream before the rate counts as missed.
const MAX_WAITED: f64 = 0.01;
/// Share of all cores above which the driver is at its limit.
const BUSY: f64 = 0.85;
/// The same where the target runs on this machine too: share that is busy, and that the driver takes.
const MACHINE_BUSY: f64 = 0.95;
const LARGE_PART: f64 = 0.25;

/// How the load test itself did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DriverReport {
    /// How late it woke up for requests, and for a heartbeat every 10 ms.
    pub late_seconds: Option<Percentiles>,
    /// How late it may be, in the 99th percentile.
    pub max_late_seconds: f64,
    /// Number of requests that waited for a free stream.
    pub waited_for_stream: u64,
    /// Processor time of the load test.
    pub cpu_seconds: f64,
    /// The same per received token of complete responses.
    pub cpu_seconds_per_token: Option<f64>,
    /// Number of processors that it may use.
    pub cores: usize,
    /// Why the results are about the driver rather than about the target; null if they are not.
    pub spoiled: Option<String>,
    /// What limited the load without spoiling the results.
    pub note: Option<String>,
}

/// What is known of the pass.
pub struct Pass<'a> {
    /// How the driver did.
    pub stats: &'a DriverStats,
    /// Its duration, in seconds.
    pub seconds: f64,
    /// Number of requests.
    pub sent: u64,
    /// Tokens of complete responses.
    pub tokens: u64,
    /// Median time to the first token, in seconds.
    pub ttft: Option<f64>,
    /// Maximum number of streams.
    pub streams: usize,
}

impl DriverReport {
    /// Creates the report. `max_late` is the limit that the user has set.
    pub fn new(pass: &Pass<'_>, max_late: Option<Duration>) -> Self {
        let DriverStats { late, waited, cpu, machine_busy } = pass.stats;
        let ttft = pass.ttft.unwrap_or_default();
        let default = MIN_LIMIT.as_secs_f64().max(SHARE_OF_TTFT * ttft);
        let limit = max_late.map_or(default, |limit| limit.as_secs_f64());
        let late_seconds = Percentiles::of(late);
        let cores = available_parallelism().map_or(1, NonZeroUsize::get);
        let cpu = cpu.as_secs_f64();
        let used = cpu / pass.seconds.max(1e-9);
        let share = used / cores as f64;
        let contended = machine_busy.is_some_and(|busy| busy > MACHINE_BUSY) && share > LARGE_PART;
        let busy = share > BUSY || contended;
        let missed = *waited as f64 > MAX_WAITED * pass.sent as f64;
        let p99 = late_seconds.map_or(0.0, |late| late.p99);
        let mut report = Self {
            late_seconds,
            max_late_seconds: limit,
            waited_for_stream: *waited,
            cpu_seconds: cpu,
            cpu_seconds_per_token: (pass.tokens > 0).then(|| cpu / pass.tokens as f64),
            cores,
            spoiled: None,
            note: None,
        };
        if p99 > limit {
            report.spoiled = Some(format!(
                "the load test itself was {:.1} ms late in the 99th percentile, more than {:.1} ms: \
                 latencies are its own; use a faster or less busy machine, a lower load, or \
                 --max-lateness",
                1e3 * p99,
                1e3 * limit
            ));
        } else if missed && busy {
            report.spoiled = Some(format!(
                "the load test could not make the rate: it used {used:.1} of {cores} cores{}, and {waited} of \
                 {} requests were sent late; lower the rate, use several load tests, or a machine that the \
                 target does not run on",
                if contended { ", which were all busy" } else { "" },
                pass.sent
            ));
        } else if missed {
            report.note = Some(format!(
                "{waited} of {} requests waited for one of {} streams: the target is slower than the \
                 rate, or --concurrency too low",
                pass.sent, pass.streams
            ));
        }
        report
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::measure::latency::Latency;

    fn report(late: Duration, waited: u64, cpu: f64, limit: Option<Duration>) -> DriverReport {
        let mut histogram = Latency::default();
        (0..100).for_each(|_| histogram.add(late));
        let cpu = Duration::from_secs_f64(cpu);
        let stats = DriverStats { late: histogram, waited, cpu, machine_busy: Some(0.99) };
        let pass = Pass {
            stats: &stats,
            seconds: 1.0,
            sent: 1_000,
            tokens: 10,
            ttft: Some(0.5),
            streams: 7,
        };
        DriverReport::new(&pass, limit)
    }

    #[test]
    fn lateness_spoils_results_beyond_a_share_of_what_is_measured() {
        let ms = Duration::from_millis;
        assert_eq!(report(ms(45), 0, 0.1, None).spoiled, None, "a tenth of 500 ms is 50");
        let late = report(ms(60), 0, 0.1, None);
        assert!(late.spoiled.unwrap().contains("60.0 ms late"), "{:?}", late.late_seconds);
        assert_eq!(report(ms(60), 0, 0.1, Some(ms(100))).spoiled, None);
        assert!(report(ms(6), 0, 0.1, Some(ms(5))).spoiled.is_some());
    }

    #[test]
    fn a_rate_that_is_not_made_is_the_fault_of_a_busy_driver_only() {
        let cores = available_parallelism().unwrap().get() as f64;
        let busy = report(Duration::ZERO, 500, 0.95 * cores, None);
        assert!(busy.spoiled.unwrap().contains("500 of 1000 requests"), "{:?}", busy.note);
        let idle = report(Duration::ZERO, 500, 0.1, None);
        assert_eq!(idle.spoiled, None);
        assert!(idle.note.unwrap().contains("one of 7 streams"));
        assert_eq!(
            report(Duration::ZERO, 10, 0.95 * cores, None).spoiled,
            None,
            "one in a hundred"
        );
        assert_eq!(report(Duration::ZERO, 0, 0.1, None).cpu_seconds_per_token, Some(0.01));
    }
}

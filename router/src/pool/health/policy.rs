//! Rules that eject, probe and re-admit workers. Pure: takes records, returns transitions.
//!
//! The rules apply to the workers of one model. *Known* workers are all that ever served it and are
//! still in the pool, including unusable and draining ones. *Serving* workers are the live and
//! healthy ones of them.
//!
//! | condition | transition |
//! | --- | --- |
//! | healthy, `eject_failures` consecutive failures | ejected, if half of the known stay serving |
//! | healthy, much slower than its peers | the same, after those that fail, the slowest first |
//! | ejected, and the ejection time is over | half-open: three probes |
//! | half-open, a probe unread by its client for 1 s, or no result for 10 s | a further probe |
//! | half-open, three probes succeeded and were not slow | re-admitted |
//! | half-open, a probe failed or they were slow | ejected, for twice as long as the last time |
//! | fewer than half of the known are serving | none is ejected, all live workers take requests |
//!
//! So with one worker none is ever ejected, with two or three at most one, with four two. Peers are
//! workers of one digest, which includes the kind of device. At least three are needed for a
//! comparison. A worker is too slow if its median is more than `eject_latency_factor` times the
//! median of its peers, and further from it than five median absolute deviations.

use std::{cmp::Ordering, collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::{
    health_record::{HealthRecord, HealthState, PROBES},
    window::median,
};
use crate::config::HealthConfig;

/// Minimum number of samples of a healthy worker for a comparison.
const MIN_SAMPLES: usize = 8;
/// Minimum number of workers of one digest with enough samples.
const MIN_PEERS: usize = 3;
/// Number of median absolute deviations from which a latency is an outlier.
const MAD_FACTOR: u64 = 5;
/// Latencies that are never too slow, in nanoseconds: time to first token per prefilled token, and
/// time between tokens.
const MIN_SLOW_NANOS: [u64; 2] = [100_000, 2_000_000];

/// A live worker under review.
pub(in crate::pool) struct ReviewedWorker<'a> {
    pub(in crate::pool) record: &'a mut HealthRecord,
    /// Digest of the model that it serves.
    pub(in crate::pool) digest: &'a str,
    /// Whether it is stalled, so that it serves no requests regardless of its record.
    pub(in crate::pool) stalled: bool,
}

/// Reason of an ejection.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(in crate::pool) enum EjectionCause {
    #[error("{count} failures in a row, the last: {last}")]
    Failures { count: u32, last: String },
    #[error("its first token takes {0:.1} times as long as its peers'")]
    SlowFirstToken(f64),
    #[error("its tokens take {0:.1} times as long as its peers'")]
    SlowTokens(f64),
    #[error("a probe failed: {0}")]
    Probe(String),
}

impl EjectionCause {
    /// Returns the label value for metrics.
    pub(in crate::pool) fn name(&self) -> &'static str {
        match self {
            Self::Failures { .. } => "failures",
            Self::SlowFirstToken(_) => "slow_first_token",
            Self::SlowTokens(_) => "slow_tokens",
            Self::Probe(_) => "probe",
        }
    }

    /// Orders failures before latencies, and the most severe first.
    fn worst_first(&self, other: &Self) -> Ordering {
        let weight = |cause: &Self| match cause {
            Self::Failures { count, .. } => (true, f64::from(*count)),
            Self::Probe(_) => (true, 0.0),
            Self::SlowFirstToken(times) | Self::SlowTokens(times) => (false, *times),
        };
        let ((failing, by), (other_failing, other_by)) = (weight(self), weight(other));
        other_failing.cmp(&failing).then(other_by.total_cmp(&by))
    }
}

/// State transition of a worker.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::pool) enum Transition {
    Ejected { cause: EjectionCause, time: Duration },
    HalfOpened,
    Readmitted,
}

/// Whether at least half of the known workers are serving.
fn at_least_half(serving: usize, known: usize) -> bool {
    serving * 2 >= known
}

fn is_healthy(record: &HealthRecord) -> bool {
    record.state == HealthState::Healthy
}

/// Applies the rules. `spread` draws the factor of an ejection time. Returns the transitions, each
/// with the index of its worker.
pub(in crate::pool) fn review(
    workers: &mut [ReviewedWorker<'_>],
    known: usize,
    config: &HealthConfig,
    now: Instant,
    mut spread: impl FnMut() -> f64,
) -> Vec<(usize, Transition)> {
    let mut transitions = Vec::new();
    let slow = latency_outliers(workers, config, now);
    let mut to_eject: Vec<(usize, EjectionCause)> = Vec::new();
    for (index, (ReviewedWorker { record, .. }, slow)) in workers.iter_mut().zip(slow).enumerate() {
        record.renew_probes(now);
        let transition = match record.state {
            HealthState::Healthy => {
                let failing = config.eject_failures > 0 && record.failures >= config.eject_failures;
                let failures = failing.then(|| EjectionCause::Failures {
                    count: record.failures,
                    last: record.last_failure.clone(),
                });
                to_eject.extend(failures.or(slow).map(|cause| (index, cause)));
                continue;
            }
            HealthState::Ejected { until } if until <= now => {
                record.begin_half_open(now);
                Transition::HalfOpened
            }
            HealthState::Ejected { .. } => continue,
            HealthState::HalfOpen(half_open) => {
                let cause = match slow {
                    _ if half_open.failed => {
                        Some(EjectionCause::Probe(record.last_failure.clone()))
                    }
                    _ if half_open.succeeded < PROBES => continue,
                    slow => slow,
                };
                match cause {
                    Some(cause) => Transition::Ejected {
                        cause,
                        time: record.eject(now, config.base_ejection_time, spread()),
                    },
                    None => {
                        record.readmit(now);
                        Transition::Readmitted
                    }
                }
            }
        };
        transitions.push((index, transition));
    }

    let serves = |worker: &ReviewedWorker<'_>| is_healthy(worker.record) && !worker.stalled;
    let mut serving = workers.iter().filter(|worker| serves(worker)).count();
    to_eject.sort_by(|(_, a), (_, b)| a.worst_first(b));
    for (index, cause) in to_eject {
        if serving == 0 || !at_least_half(serving - 1, known) {
            break;
        }
        serving -= 1;
        let time = workers[index].record.eject(now, config.base_ejection_time, spread());
        transitions.push((index, Transition::Ejected { cause, time }));
    }
    for worker in workers {
        worker.record.overruled = !at_least_half(serving, known);
    }
    transitions
}

/// Latencies of the workers of one digest, by kind: time to first token, and time between tokens.
#[derive(Default)]
struct PeerLatencies {
    medians: [Vec<u64>; 2],
    /// Median of the peers, and the limit above which a latency is too slow.
    limits: [Option<(u64, u64)>; 2],
}

impl PeerLatencies {
    fn compute_limits(&mut self, factor: u64) {
        for (medians, limit) in self.medians.iter().zip(&mut self.limits) {
            *limit = median(medians.clone()).and_then(|typical| {
                let deviation = median(medians.iter().map(|one| one.abs_diff(typical)).collect())?;
                let factored = typical.saturating_mul(factor);
                Some((
                    typical,
                    factored.max(typical.saturating_add(MAD_FACTOR.saturating_mul(deviation))),
                ))
            });
        }
    }

    /// Returns the ratio of `own` to the median of the peers if it is too slow. At least
    /// `min_peers` must have samples.
    fn excess(&self, kind: usize, own: Option<u64>, min_peers: usize) -> Option<f64> {
        let (typical, limit) =
            self.limits[kind].filter(|_| self.medians[kind].len() >= min_peers)?;
        let own = own.filter(|own| *own > limit.max(MIN_SLOW_NANOS[kind]))?;
        Some(own as f64 / typical.max(1) as f64)
    }
}

/// Returns the cause of ejection of each worker that is too slow.
fn latency_outliers(
    workers: &mut [ReviewedWorker<'_>],
    config: &HealthConfig,
    now: Instant,
) -> Vec<Option<EjectionCause>> {
    if config.eject_latency_factor == 0 {
        return vec![None; workers.len()];
    }
    let mut peers_by_digest: HashMap<&str, PeerLatencies> = HashMap::new();
    let mut measured = Vec::with_capacity(workers.len());
    for ReviewedWorker { record, digest, .. } in workers {
        let is_healthy = is_healthy(record);
        let min = if is_healthy { MIN_SAMPLES } else { PROBES as usize };
        let own = [record.ttft.median(now, min), record.inter_token.median(now, min)];
        if is_healthy {
            let peers = peers_by_digest.entry(digest).or_default();
            for (all, own) in peers.medians.iter_mut().zip(own) {
                all.extend(own);
            }
        }
        measured.push((*digest, is_healthy, own));
    }
    for peers in peers_by_digest.values_mut() {
        peers.compute_limits(config.eject_latency_factor.into());
    }
    let causes = measured.into_iter().map(|(digest, is_healthy, own)| {
        let peers = peers_by_digest.get(digest)?;
        // A healthy worker is itself among the peers.
        let min = if is_healthy { MIN_PEERS } else { MIN_PEERS - 1 };
        let tokens = peers.excess(1, own[1], min).map(EjectionCause::SlowTokens);
        tokens.or_else(|| peers.excess(0, own[0], min).map(EjectionCause::SlowFirstToken))
    });
    causes.collect()
}

#[cfg(test)]
mod tests;

//! Who is out, who is tried, who is in. Pure: records in, changes out.
//!
//! The rules, for the workers of one model. *Known* are all that ever served it and are not forgotten, gone
//! and draining ones too; *taking* are those of them that live and are in.
//!
//! | when | then |
//! | --- | --- |
//! | so many failures in a row | out, if half of the known workers go on taking requests |
//! | much slower than its equals | the same, after those that fail, the slowest first |
//! | out, and its time is over | on trial: three probes |
//! | on trial, a client does not read its probe for a second, or no result for ten | a further probe |
//! | on trial, three probes went well and were not slow | in |
//! | on trial, a probe failed or they were slow | out, for twice as long as the last time |
//! | fewer than half of the known are taking | nobody is put out, and whoever lives takes requests |
//!
//! So of one worker none is ever out, of two or three one, of four two. Equals are workers of one digest, which
//! has the kind of device in it; there must be three to compare. Too slow is a median of more than
//! `latency_factor` times the equals' median, and further from it than five times what they usually differ.

use std::{cmp::Ordering, collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::{
    health_record::{Condition, HealthRecord, PROBES},
    window::median,
};
use crate::config::HealthConfig;

/// Measurements that a worker must have to be compared.
const ENOUGH: usize = 8;
/// Workers that must have so many.
const EQUALS: usize = 3;
/// Differences that are usual, as a number of median absolute deviations.
const USUAL: u64 = 5;
/// Faster than this is never slow: nanoseconds per token of a prompt, and per token of an answer.
const LEAST: [u64; 2] = [100_000, 2_000_000];

/// A live worker under review.
pub(super) struct Patient<'a> {
    pub(super) record: &'a mut HealthRecord,
    /// Of what it serves.
    pub(super) digest: &'a str,
    /// It stands still, so it takes nothing whatever its record says.
    pub(super) stalled: bool,
}

/// Why a worker is put out.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(super) enum Cause {
    #[error("{count} failures in a row, the last: {last}")]
    Failures { count: u32, last: String },
    #[error("its first token takes {0:.1} times as long as its equals'")]
    SlowFirstToken(f64),
    #[error("its tokens take {0:.1} times as long as its equals'")]
    SlowTokens(f64),
    #[error("a probe failed: {0}")]
    Probe(String),
}

impl Cause {
    /// As metrics have it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Failures { .. } => "failures",
            Self::SlowFirstToken(_) => "slow_first_token",
            Self::SlowTokens(_) => "slow_tokens",
            Self::Probe(_) => "probe",
        }
    }

    /// Failures before slowness, and the worst first.
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

/// What has changed for a worker.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    Ejected { cause: Cause, time: Duration },
    OnTrial,
    BackIn,
}

/// Whether enough of the known workers take requests.
fn is_half(taking: usize, known: usize) -> bool {
    taking * 2 >= known
}

fn is_in(record: &HealthRecord) -> bool {
    record.condition == Condition::In
}

/// Applies the rules. `spread` draws what times out are multiplied with. Answers what has changed, by the
/// worker's place in the list.
pub(super) fn review(
    patients: &mut [Patient<'_>],
    known: usize,
    config: &HealthConfig,
    now: Instant,
    mut spread: impl FnMut() -> f64,
) -> Vec<(usize, Change)> {
    let mut changes = Vec::new();
    let slow = slowness(patients, config, now);
    let mut worst: Vec<(usize, Cause)> = Vec::new();
    for (at, (Patient { record, .. }, slow)) in patients.iter_mut().zip(slow).enumerate() {
        record.renew_probes(now);
        let change = match record.condition {
            Condition::In => {
                let failing = config.eject_failures > 0 && record.failures >= config.eject_failures;
                let failures = failing.then(|| Cause::Failures {
                    count: record.failures,
                    last: record.last_failure.clone(),
                });
                worst.extend(failures.or(slow).map(|cause| (at, cause)));
                continue;
            }
            Condition::Out { until } if until <= now => {
                record.try_out(now);
                Change::OnTrial
            }
            Condition::Out { .. } => continue,
            Condition::Trial(trial) => {
                let cause = match slow {
                    _ if trial.bad => Some(Cause::Probe(record.last_failure.clone())),
                    _ if trial.good < PROBES => continue,
                    slow => slow,
                };
                match cause {
                    Some(cause) => Change::Ejected {
                        cause,
                        time: record.eject(now, config.base_ejection_time, spread()),
                    },
                    None => {
                        record.let_in(now);
                        Change::BackIn
                    }
                }
            }
        };
        changes.push((at, change));
    }

    let takes = |patient: &Patient<'_>| is_in(patient.record) && !patient.stalled;
    let mut taking = patients.iter().filter(|patient| takes(patient)).count();
    worst.sort_by(|(_, a), (_, b)| a.worst_first(b));
    for (at, cause) in worst {
        if taking == 0 || !is_half(taking - 1, known) {
            break;
        }
        taking -= 1;
        let time = patients[at].record.eject(now, config.base_ejection_time, spread());
        changes.push((at, Change::Ejected { cause, time }));
    }
    for patient in patients {
        patient.record.ignored = !is_half(taking, known);
    }
    changes
}

/// What the equals of one digest usually take, by kind of measurement.
#[derive(Default)]
struct Usual {
    medians: [Vec<u64>; 2],
    /// The middle, and what is too slow.
    limits: [Option<(u64, u64)>; 2],
}

impl Usual {
    fn conclude(&mut self, factor: u64) {
        for (medians, limit) in self.medians.iter().zip(&mut self.limits) {
            *limit = median(medians.clone()).and_then(|middle| {
                let off = median(medians.iter().map(|one| one.abs_diff(middle)).collect())?;
                let factored = middle.saturating_mul(factor);
                Some((middle, factored.max(middle.saturating_add(USUAL.saturating_mul(off)))))
            });
        }
    }

    /// How many times slower than usual, if that is too slow. `others` must have been compared with.
    fn excess(&self, kind: usize, own: Option<u64>, others: usize) -> Option<f64> {
        let (middle, limit) = self.limits[kind].filter(|_| self.medians[kind].len() >= others)?;
        let own = own.filter(|own| *own > limit.max(LEAST[kind]))?;
        Some(own as f64 / middle.max(1) as f64)
    }
}

/// Who is too slow, for each worker.
fn slowness(
    patients: &mut [Patient<'_>],
    config: &HealthConfig,
    now: Instant,
) -> Vec<Option<Cause>> {
    if config.eject_latency_factor == 0 {
        return vec![None; patients.len()];
    }
    let mut usual: HashMap<&str, Usual> = HashMap::new();
    let mut measured = Vec::with_capacity(patients.len());
    for Patient { record, digest, .. } in patients {
        let is_in = is_in(record);
        let least = if is_in { ENOUGH } else { PROBES as usize };
        let own = [record.first.median(now, least), record.next.median(now, least)];
        if is_in {
            let equals = usual.entry(digest).or_default();
            for (all, own) in equals.medians.iter_mut().zip(own) {
                all.extend(own);
            }
        }
        measured.push((*digest, is_in, own));
    }
    for equals in usual.values_mut() {
        equals.conclude(config.eject_latency_factor.into());
    }
    let judged = measured.into_iter().map(|(digest, is_in, own)| {
        let equals = usual.get(digest)?;
        // One that is in is among them.
        let least = if is_in { EQUALS } else { EQUALS - 1 };
        let tokens = equals.excess(1, own[1], least).map(Cause::SlowTokens);
        tokens.or_else(|| equals.excess(0, own[0], least).map(Cause::SlowFirstToken))
    });
    judged.collect()
}

#[cfg(test)]
mod tests;

//! The task that reviews the workers of every model, and logs its decisions.

use std::{
    sync::{Arc, MutexGuard},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior};
use tracing::{info, warn};

use super::{
    Pool,
    health::{
        health_record::{HealthRecord, HealthState},
        policy::{self, ReviewedWorker, Transition},
    },
    model::Model,
};
use crate::{config::HealthConfig, metrics::Metrics};

/// Interval of reviews without a notification: ends ejections, and compares latencies.
const INTERVAL: Duration = Duration::from_secs(1);
/// Minimum time between two reviews, so that a burst of failures causes one review.
const PAUSE: Duration = Duration::from_millis(10);

/// Reviews the workers of `pool` whenever one fails, the fleet changes or a second has passed.
pub(crate) async fn review(pool: Pool, config: HealthConfig, metrics: Metrics) {
    let (mut fleet, review) = (pool.watch(), pool.review());
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = review.notified() => {}
            changed = fleet.changed() => if changed.is_err() { break },
        }
        let snapshot = Arc::clone(&fleet.borrow_and_update());
        for model in snapshot.models() {
            review_model(model, &config, &metrics);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Reviews the workers of `model`. All records are locked together, so that none changes during a
/// review.
fn review_model(model: &Model, config: &HealthConfig, metrics: &Metrics) {
    let workers = model.live();
    let mut records: Vec<MutexGuard<'_, HealthRecord>> =
        workers.iter().map(|worker| worker.health.lock()).collect();
    let overruled = |records: &[MutexGuard<'_, HealthRecord>]| {
        records.iter().any(|record| record.overruled && record.state != HealthState::Healthy)
    };
    let before = overruled(&records);
    let mut reviewed: Vec<_> = records
        .iter_mut()
        .zip(workers)
        .map(|(record, worker)| ReviewedWorker {
            record,
            digest: &worker.info.digest,
            stalled: worker.liveness.is_stalled(),
        })
        .collect();
    // Workers that were ejected together must not return at the same time.
    let spread = || rand::random_range(1.0..1.25);
    let transitions = policy::review(&mut reviewed, model.known(), config, Instant::now(), spread);
    for (record, worker) in records.iter().zip(workers) {
        worker.health.publish(record);
    }
    let overruled = overruled(&records);
    drop(records);

    for (index, transition) in transitions {
        let worker = &workers[index].id;
        match transition {
            Transition::Ejected { cause, time } => {
                metrics.ejected(cause.name());
                let seconds = time.as_secs_f64();
                warn!(%worker, reason = %cause, seconds, "ejected: gets no requests for a while");
            }
            Transition::HalfOpened => info!(%worker, "half-open: gets a few requests"),
            Transition::Readmitted => info!(%worker, "re-admitted"),
        }
    }
    if overruled && !before {
        let model = model.name();
        warn!(model, "fewer than half of the workers are healthy: all live workers are used");
    }
}

//! The task that reviews the workers of every model, and tells what it decides.

use std::{
    sync::{Arc, MutexGuard},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior};
use tracing::{info, warn};

use super::{
    super::{Pool, model::Model},
    health_record::{Condition, HealthRecord},
    policy::{self, Change, Patient},
};
use crate::{config::HealthConfig, metrics::Metrics};

/// Without review, this often: times out end, and the slow are compared with the others.
const INTERVAL: Duration = Duration::from_secs(1);
/// Between two reviews at least: a storm of failures is one review, not one each.
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
        let now = Arc::clone(&fleet.borrow_and_update());
        for model in now.models() {
            review_model(model, &config, &metrics);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// All records are locked together, so that nobody changes between being counted and being judged.
fn review_model(model: &Model, config: &HealthConfig, metrics: &Metrics) {
    let workers = model.live();
    let mut records: Vec<MutexGuard<'_, HealthRecord>> =
        workers.iter().map(|worker| worker.health.lock()).collect();
    let overruled = |records: &[MutexGuard<'_, HealthRecord>]| {
        records.iter().any(|record| record.ignored && record.condition != Condition::In)
    };
    let before = overruled(&records);
    let mut patients: Vec<_> = records
        .iter_mut()
        .zip(workers)
        .map(|(record, worker)| Patient {
            record,
            digest: &worker.info.digest,
            stalled: worker.liveness.is_stalled(),
        })
        .collect();
    // Those that were put out together must not come back together.
    let spread = || rand::random_range(1.0..1.25);
    let changes = policy::review(&mut patients, model.known(), config, Instant::now(), spread);
    for (record, worker) in records.iter().zip(workers) {
        worker.health.publish(record);
    }
    let overruled = overruled(&records);
    drop(records);

    for (at, change) in changes {
        let worker = &workers[at].id;
        match change {
            Change::Ejected { cause, time } => {
                metrics.ejected(cause.name());
                let seconds = time.as_secs_f64();
                warn!(%worker, reason = %cause, seconds, "ejected: gets nothing for a while");
            }
            Change::OnTrial => info!(%worker, "on trial: gets a few requests"),
            Change::BackIn => info!(%worker, "healthy again"),
        }
    }
    if overruled && !before {
        let model = model.name();
        warn!(model, "fewer than half of the workers are healthy: all that live are used");
    }
}

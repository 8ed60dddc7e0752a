//! Discovery through a real etcd that fails in various ways.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod auth;
mod foreign_writes;
mod logs;
mod server;
mod view;

use std::{future::pending, time::Duration};

use prometheus_client::registry::Registry;
use serde_json::Value;
use stoker_proto::v1::{Capacity, ModelInfo};
use stoker_shared::{
    discovery::{
        Change, WorkerId,
        etcd::{self, EtcdConfig, EtcdMetrics, Registration, WorkerRecord},
    },
    metrics::exposition,
};

use server::Etcd;
use view::{View, etcd_has, keys, put, remove};

const PREFIX: &str = "/stoker/test/workers/";
/// A lease TTL longer than any test.
const LONG: Duration = Duration::from_secs(60);
/// The minimum lease TTL of etcd.
const SHORT: Duration = Duration::from_secs(1);

fn config(etcd: &Etcd) -> EtcdConfig {
    EtcdConfig::new(vec![etcd.url().parse().unwrap()], PREFIX)
}

fn announce_with(
    config: EtcdConfig,
    worker: &str,
    address: &str,
    lease_ttl: Duration,
) -> Registration {
    let capacity = Capacity { max_num_seqs: 64, kv_blocks: 128, ..Capacity::default() };
    let info = ModelInfo {
        model: "story".into(),
        digest: "d1".into(),
        version: "0.1.0".into(),
        capacity: Some(capacity),
        ..ModelInfo::default()
    };
    let record = WorkerRecord::new(address.parse().unwrap(), info);
    etcd::register(config, lease_ttl, &WorkerId::new(worker), &record, pending())
}

fn announce(etcd: &Etcd, worker: &str, address: &str) -> Registration {
    announce_with(config(etcd), worker, address, LONG)
}

fn follow(etcd: &Etcd) -> View {
    View::new(etcd::watch(config(etcd)))
}

#[tokio::test]
async fn a_worker_is_found_and_withdrawn_immediately() {
    for etcd in Etcd::each() {
        let mut view = follow(&etcd);
        view.until(|v| v.error_contains(&[etcd.url(), "has no key under", PREFIX])).await;
        let worker = announce(&etcd, "a", "host:1");
        view.until(|v| v.has("a", "host:1") && v.source_error.is_none()).await;

        let [key] = &keys(&etcd).await[..] else { panic!("one key") };
        assert_eq!(key.name, format!("{PREFIX}a"));
        let record: Value = serde_json::from_slice(&key.value).unwrap();
        assert_eq!((&record["address"], &record["model"]), (&"host:1".into(), &"story".into()));
        assert_eq!((&record["digest"], &record["version"]), (&"d1".into(), &"0.1.0".into()));
        assert_eq!(record["capacity"]["kv_blocks"], 128);

        worker.withdraw().await;
        assert!(
            keys(&etcd).await.is_empty(),
            "deleted when `withdraw` returns, not when the lease expires"
        );
        view.until(View::is_empty).await;
    }
}

#[tokio::test]
async fn a_worker_that_drains_is_withdrawn() {
    for etcd in Etcd::each() {
        let (drain, drained) = tokio::sync::oneshot::channel::<()>();
        let record = WorkerRecord::new("host:1".parse().unwrap(), ModelInfo::default());
        let end = async { drop(drained.await) };
        let _registration = etcd::register(config(&etcd), LONG, &WorkerId::new("a"), &record, end);
        let mut view = follow(&etcd);
        view.until(|v| v.has("a", "host:1")).await;
        drain.send(()).unwrap();
        view.until(View::is_empty).await;
    }
}

#[tokio::test]
async fn the_key_of_a_crashed_worker_expires_with_its_lease() {
    for etcd in Etcd::each() {
        let worker = announce_with(config(&etcd), "a", "host:1", SHORT);
        let mut view = follow(&etcd);
        view.until(|v| v.has("a", "host:1")).await;
        // Drops the registration without `withdraw`, as a crash does.
        drop(worker);
        view.until(View::is_empty).await;
        assert!(keys(&etcd).await.is_empty());
    }
}

#[tokio::test]
async fn a_restarted_etcd_keeps_its_workers() {
    for mut etcd in Etcd::each() {
        let a = announce(&etcd, "a", "host:1");
        let mut view = follow(&etcd);
        view.until(|v| v.has("a", "host:1")).await;
        etcd.kill();
        view.until(|v| v.error_contains(&[etcd.url(), "cannot be reached", "refused"])).await;
        assert!(has_a(&view), "known workers are kept while etcd is down");
        // Registers while etcd is down, and retries.
        let _b = announce(&etcd, "b", "host:2");
        etcd.start();
        view.until(|v| v.has("b", "host:2") && v.source_error.is_none()).await;
        let gone: Vec<_> = view.seen.iter().filter(|c| matches!(c, Change::Remove(_))).collect();
        assert!(gone.is_empty(), "{gone:?}");
        // The first worker has reconnected too.
        a.withdraw().await;
        view.until(|v| !has_a(v)).await;
        assert!(view.has("b", "host:2"));
    }
}

#[tokio::test]
async fn metrics_follow_the_sessions() {
    for mut etcd in Etcd::each() {
        let (of_worker, of_router) = (config(&etcd), config(&etcd));
        let both = [of_worker.metrics.clone(), of_router.metrics.clone()];
        let worker = announce_with(of_worker, "a", "host:1", LONG);
        let mut view = View::new(etcd::watch(of_router));
        for metrics in &both {
            until_exposed(metrics, "stoker_etcd_connected 1").await;
        }
        view.until(has_a).await;
        etcd.kill();
        for metrics in &both {
            let text = until_exposed(metrics, "stoker_etcd_connected 0").await;
            assert!(!text.contains("stoker_etcd_failures_total 0"), "{text}");
        }
        etcd.start();
        for metrics in &both {
            until_exposed(metrics, "stoker_etcd_connected 1").await;
        }
        worker.withdraw().await;
        until_exposed(&both[0], "stoker_etcd_connected 0").await;
        until_exposed(&both[1], "stoker_etcd_connected 1").await;
    }
}

/// Waits until `metrics` have `line`, and returns all of them.
async fn until_exposed(metrics: &EtcdMetrics, line: &str) -> String {
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let exposed = async {
        loop {
            let text = exposition(&registry);
            if text.lines().any(|l| l == line) {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, exposed).await.unwrap()
}

fn has_a(view: &View) -> bool {
    view.has("a", "host:1")
}

#[tokio::test]
async fn workers_return_after_a_pause_longer_than_their_lease() {
    for etcd in Etcd::each() {
        let _a = announce_with(config(&etcd), "a", "host:1", SHORT);
        let mut view = follow(&etcd);
        view.until(has_a).await;
        let before = keys(&etcd).await[0].lease;
        etcd.pause();
        // Does not wait for an event: the test is about a pause longer than the lease.
        tokio::time::sleep(3 * SHORT).await;
        etcd.resume();
        etcd_has(&etcd, "under another lease", |all| all.iter().any(|key| key.lease != before))
            .await;
        sees_a_new_worker(&etcd, &mut view).await;
        assert!(has_a(&view));
    }
}

#[tokio::test]
async fn workers_return_after_etcd_was_wiped() {
    for mut etcd in Etcd::each() {
        let _a = announce(&etcd, "a", "host:1");
        let mut view = follow(&etcd);
        view.until(has_a).await;
        // Raises the revision far above the one that the wiped etcd starts with.
        for _ in 0..20 {
            put(&etcd, "/elsewhere", "").await;
        }
        etcd.kill();
        etcd.wipe();
        etcd.start();
        etcd_has(&etcd, "the worker again", |all| all.len() == 1).await;
        sees_a_new_worker(&etcd, &mut view).await;
        assert!(has_a(&view));
    }
}

/// Waits until the view reports a new worker, and thus everything before it.
async fn sees_a_new_worker(etcd: &Etcd, view: &mut View) {
    let _next = announce(etcd, "next", "host:9");
    view.until(|v| v.has("next", "host:9")).await;
}

#[tokio::test]
async fn an_etcd_that_starts_last_is_found() {
    for mut etcd in Etcd::each_stopped() {
        let mut view = follow(&etcd);
        view.until(|v| v.error_contains(&[etcd.url(), "cannot be reached", "refused"])).await;
        let _a = announce(&etcd, "a", "host:1");
        etcd.start();
        view.until(|v| has_a(v) && v.source_error.is_none()).await;
    }
}

#[tokio::test]
async fn one_server_of_several_is_enough() {
    for etcd in Etcd::each() {
        let stopped = Etcd::each_stopped().next().unwrap();
        let mut both = config(&stopped);
        both.etcd.extend(config(&etcd).etcd);
        let a = announce_with(both.clone(), "a", "host:1", LONG);
        let mut view = View::new(etcd::watch(both));
        view.until(has_a).await;
        a.withdraw().await;
        assert!(keys(&etcd).await.is_empty());
    }
}

#[tokio::test]
async fn malformed_records_are_ignored() {
    for etcd in Etcd::each() {
        for (name, value) in [
            ("bad", "no JSON"),
            ("worse", r#"{"address": "nowhere"}"#),
            ("good", r#"{"address": "host:1", "of a later version": [1]}"#),
            ("", r#"{"address": "host:2"}"#),
        ] {
            put(&etcd, &format!("{PREFIX}{name}"), value).await;
        }
        // The key of another cluster whose prefix starts with this one.
        put(&etcd, &format!("{}-2/b", PREFIX.trim_end_matches('/')), r#"{"address": "h:1"}"#).await;
        let mut view = follow(&etcd);
        view.until(|v| v.has("good", "host:1")).await;
        assert_eq!(view.workers.len(), 1, "{view:?}");
        // Changes that the watch reports.
        put(&etcd, &format!("{PREFIX}new"), "\u{0}").await;
        put(&etcd, &format!("{PREFIX}bad"), r#"{"address": "host:3"}"#).await;
        put(&etcd, &format!("{PREFIX}good"), "broken").await;
        view.until(|v| v.has("bad", "host:3") && v.workers.len() == 1).await;
        remove(&etcd, &format!("{PREFIX}bad")).await;
        view.until(View::is_empty).await;
    }
}

#[tokio::test]
async fn a_worker_may_return_at_another_address() {
    for etcd in Etcd::each() {
        let dead = announce_with(config(&etcd), "a", "host:1", SHORT);
        let mut view = follow(&etcd);
        view.until(has_a).await;
        drop(dead);
        // The key of the earlier process still exists. The end of its lease must not delete the new
        // key.
        let _second = announce(&etcd, "a", "host:2");
        view.until(|v| v.has("a", "host:2")).await;
        let dying = announce_with(config(&etcd), "dying", "host:3", SHORT);
        view.until(|v| v.has("dying", "host:3")).await;
        drop(dying);
        // A lease that was granted later has expired, so the first one has too.
        view.until(|v| !v.has("dying", "host:3")).await;
        assert!(view.has("a", "host:2"));
    }
}

#[tokio::test]
async fn two_workers_with_one_id_do_not_overwrite_each_other_repeatedly() {
    for etcd in Etcd::each() {
        let first = announce_with(config(&etcd), "a", "host:1", SHORT);
        let mut view = follow(&etcd);
        view.until(has_a).await;
        let second = announce_with(config(&etcd), "a", "host:2", SHORT);
        view.until(|v| v.has("a", "host:2")).await;
        let dying = announce_with(config(&etcd), "dying", "host:3", SHORT);
        view.until(|v| v.has("dying", "host:3")).await;
        drop(dying);
        // The first worker has sent several keep-alives since.
        view.until(|v| !v.has("dying", "host:3")).await;
        assert!(view.has("a", "host:2"));
        // The id is free again.
        second.withdraw().await;
        view.until(has_a).await;
        first.withdraw().await;
    }
}

#[tokio::test]
async fn a_deleted_key_is_restored() {
    for etcd in Etcd::each() {
        let _a = announce_with(config(&etcd), "a", "host:1", SHORT);
        let mut view = follow(&etcd);
        view.until(has_a).await;
        remove(&etcd, &format!("{PREFIX}a")).await;
        view.until(View::is_empty).await;
        view.until(has_a).await;
    }
}

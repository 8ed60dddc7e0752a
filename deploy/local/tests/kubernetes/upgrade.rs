//! Upgrades of all pods while streams of more than a minute run.

use std::collections::BTreeSet;

use serde_json::json;

use crate::{load::Load, release::Release};

/// Streams of 130 steps, 65 s and more, which begin over a minute.
const LOAD: &str = "--requests 180 --rate 3 --concurrency 180 --synthetic 16:130";
/// The model of the worker that is not disturbed. Simulated models of all speeds generate the same.
const INSTANT: [&str; 2] = ["--simulate", "instant"];

/// Three routers and two workers of this profile, whose drain takes at most `drain` seconds.
fn values(profile: &str, drain: u32) -> String {
    let worker = json!([{
        "name": "simulated", "replicas": 2, "minReadySeconds": 10,
        "model": {"source": "simulate", "simulate": profile},
        "drain": {"timeoutSeconds": drain, "terminationGracePeriodSeconds": drain + 30},
        "options": {"max-num-seqs": 256, "max-num-queued-reqs": 1024},
    }]);
    format!("workers={worker}")
}

/// Upgrades routers and workers under load to workers of `profile`. Returns the number of streams
/// that were resumed.
async fn upgrade_under_load(test: &str, profile: &str, drain: u32) -> u64 {
    let first = values(r#"step = "500ms""#, drain);
    let release = Release::new(test, None, &["router.replicas=3", &first]).await;
    release.install().await;
    let admin = release.admin();
    release.wait_for_live_workers(&admin, 2).await;
    let routers = release.namespace.pods("router").await;
    let workers = release.namespace.pods("worker").await;
    let load = Load::start(&release.namespace, &INSTANT, LOAD, "").await;
    release.wait_for_running(&admin, 10, 40).await;
    drop(admin);
    // The format of logs is a flag of every process, so all pods are replaced.
    release.upgrade(&[&values(profile, drain), r#"logs.format="text""#]).await;
    load.assert_running().await;
    let results = load.end().await;
    let longest = results.number("/e2e_seconds/p50");
    assert!(longest > 60.0, "the streams are too short: {:#}", results.0);
    release.wait_until_gone("router", &routers).await;
    release.wait_until_gone("worker", &workers).await;
    // The new routers have followed: they know the new workers alone.
    let admin = release.admin();
    let live: BTreeSet<_> = release.wait_for_live_workers(&admin, 2).await.into_iter().collect();
    assert_eq!(live, release.namespace.pods("worker").await);
    results.resumed()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes cluster: run by scripts/kubernetes"]
async fn streams_move_to_new_workers_of_the_same_digest() {
    let resumed = upgrade_under_load("upgrade", r#"step = "500ms""#, 5).await;
    assert!(resumed >= 20, "the old workers had five seconds, but {resumed} streams moved");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes cluster: run by scripts/kubernetes"]
async fn streams_end_on_old_workers_where_new_ones_have_another_digest() {
    let other = r#"step = "500ms", context_length = 1024"#;
    let resumed = upgrade_under_load("new-digest", other, 300).await;
    assert_eq!(resumed, 0, "a stream cannot move to a worker of another digest");
}

//! Pods of workers that are deleted without grace, and evicted.

use serde_json::{Value, json};

use crate::{load::Load, release::Release, tool::wait_for};

/// Streams of 100 steps, 20 s and more.
const LOAD: &str = "--requests 120 --concurrency 60 --synthetic 16:100";
/// The model of the worker that is not disturbed. Simulated models of all speeds generate the same.
const INSTANT: [&str; 2] = ["--simulate", "instant"];

/// Two workers whose drain takes at most five seconds.
fn values() -> String {
    let worker = json!([{
        "name": "simulated", "replicas": 2,
        "model": {"source": "simulate", "simulate": r#"step = "200ms""#},
        "drain": {"timeoutSeconds": 5, "terminationGracePeriodSeconds": 30},
    }]);
    format!("workers={worker}")
}

/// Asks for the eviction of a pod. The error says why it is refused.
async fn evict(release: &Release, pod: &str) -> Result<String, String> {
    let namespace = &release.namespace;
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": pod, "namespace": namespace.name},
    });
    let path = format!("/api/v1/namespaces/{}/pods/{pod}/eviction", namespace.name);
    namespace.try_kubectl(&["create", "--raw", &path, "-f", "-"], &eviction.to_string()).await
}

/// Waits until the budget of the workers permits `count` evictions.
async fn wait_for_budget(release: &Release, count: u64) {
    wait_for(&format!("a budget of {count} evictions"), || async {
        let budget: Value = release.namespace.get("pdb/stoker-worker-simulated").await;
        (budget["status"]["disruptionsAllowed"].as_u64() == Some(count)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes cluster: run by scripts/kubernetes"]
async fn a_worker_is_deleted_without_grace() {
    let release = Release::new("deleted", None, &[&values()]).await;
    release.install().await;
    let admin = release.admin();
    let workers = release.wait_for_live_workers(&admin, 2).await;
    let load = Load::start(&release.namespace, &INSTANT, LOAD, "").await;
    release.wait_for_running(&admin, 15, 50).await;
    let delete = ["delete", "pod", &workers[0], "--grace-period=0", "--force"];
    release.namespace.kubectl(&delete).await;
    let results = load.end().await;
    assert!(results.resumed() >= 10, "streams of the lost worker are resumed: {:#}", results.0);
    // Its replacement is another pod with another address.
    let live = release.wait_for_live_workers(&admin, 2).await;
    assert!(!live.contains(&workers[0]), "{live:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes cluster: run by scripts/kubernetes"]
async fn a_budget_holds_back_the_eviction_of_a_second_worker() {
    let release = Release::new("evicted", None, &[&values()]).await;
    release.install().await;
    let admin = release.admin();
    let workers = release.wait_for_live_workers(&admin, 2).await;
    wait_for_budget(&release, 1).await;
    let load = Load::start(&release.namespace, &INSTANT, LOAD, "").await;
    release.wait_for_running(&admin, 15, 50).await;
    evict(&release, &workers[0]).await.unwrap();
    let refused = evict(&release, &workers[1]).await.unwrap_err();
    assert!(refused.contains("disruption budget"), "{refused}");
    // Permitted once there is a worker more.
    wait_for_budget(&release, 1).await;
    load.assert_running().await;
    evict(&release, &workers[1]).await.unwrap();
    let results = load.end().await;
    assert!(results.resumed() >= 10, "streams of evicted workers are resumed: {:#}", results.0);
    let live = release.wait_for_live_workers(&admin, 2).await;
    assert!(workers.iter().all(|worker| !live.contains(worker)), "{live:?} after {workers:?}");
}

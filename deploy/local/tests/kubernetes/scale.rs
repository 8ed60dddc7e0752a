//! A number of workers that changes under load.

use serde_json::json;

use crate::{load::Load, release::Release};

/// Streams of 100 steps, 20 s and more.
const LOAD: &str = "--requests 240 --concurrency 60 --synthetic 16:100";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes cluster: run by scripts/kubernetes"]
async fn a_router_follows_from_one_worker_to_three_and_back() {
    let worker = json!([{
        "name": "simulated",
        "model": {"source": "simulate", "simulate": r#"step = "200ms""#},
        "drain": {"timeoutSeconds": 5, "terminationGracePeriodSeconds": 30},
    }]);
    let workers = format!("workers={worker}");
    let release = Release::new("scaled", None, &["router.replicas=1", &workers]).await;
    release.install().await;
    let admin = release.admin();
    release.wait_for_live_workers(&admin, 1).await;
    let load = Load::start(&release.namespace, &["--simulate", "instant"], LOAD, "").await;
    release.wait_for_running(&admin, 40, 40).await;
    let scale = async |replicas: &str| {
        let deployment = "deployment/stoker-worker-simulated";
        release.namespace.kubectl(&["scale", deployment, "--replicas", replicas]).await;
    };
    scale("3").await;
    release.wait_for_live_workers(&admin, 3).await;
    release.wait_for_running(&admin, 10, 50).await;
    scale("1").await;
    release.wait_for_live_workers(&admin, 1).await;
    load.assert_running().await;
    load.end().await;
    // The pods that are gone are forgotten once their addresses leave DNS.
    crate::tool::wait_for("one known worker", || async {
        (admin.status().await["workers"].as_array().unwrap().len() == 1).then_some(())
    })
    .await;
}

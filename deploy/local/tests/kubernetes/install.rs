//! Installation with the values of the examples, the first request, and removal.

use serde_json::json;
use stoker_proto::v1::GenerateRequest;

use crate::{
    port_forward::PortForward,
    release::Release,
    support::{complete, inference, request, stoker},
    tool::{run, strings, wait_for},
};

/// What the production values need beside GPUs and claims: it is left out where the cluster of a
/// test does not have it.
const PRODUCTION: [&str; 11] = [
    r#"image.pullSecrets=[]"#,
    // Custom resources of operators.
    r#"metrics.podMonitor.enabled=false"#,
    r#"prometheusRule.enabled=false"#,
    r#"workers[0].autoscaling.kind="none""#,
    r#"workers[0].replicas=2"#,
    // The GPU and its node.
    r#"workers[0].gpu.enabled=false"#,
    r#"workers[0].nodeSelector={}"#,
    // Models that the cluster does not have.
    r#"workers[0].model={"name": "llama-3.1-8b-instruct", "source": "storyteller"}"#,
    r#"workers[1].model={"name": "tinyllama-1.1b-chat", "source": "storyteller"}"#,
    r#"workers[0].resources={"requests": {"cpu": "50m"}, "limits": {"memory": "3Gi"}}"#,
    r#"workers[1].resources={"requests": {"cpu": "50m"}, "limits": {"memory": "3Gi"}}"#,
];

/// A text of the model from a router.
async fn generate(router: &PortForward, model: &str) -> String {
    let request = GenerateRequest { model: model.into(), ..request("Once upon a time", 1, 60) };
    complete(&mut inference(&router.address).await, request).await.unwrap().text
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes cluster: run by scripts/kubernetes"]
async fn the_laptop_values_serve_a_story_and_leave_nothing() {
    let release = Release::new("laptop", Some("helm/examples/laptop.yaml"), &[]).await;
    let before = release.namespace.inventory().await;
    let notes = release.install().await;
    let router = release.router();
    let own = ["generate", "Once upon a time", "--seed", "1"];
    let (code, story, errors) =
        stoker(&[&own[..], &["--endpoint", &router.address]].concat()).await;
    assert_eq!(code, Some(0), "{errors}");
    assert!(story.split_whitespace().count() >= 20, "{story}");
    // The notes are what a user does next, so each address of theirs must exist.
    for part in [
        "Stoker",
        "port-forward service/stoker-router 50051:50051",
        "stoker generate \"Once upon a time\" --endpoint 127.0.0.1:50051",
        "helm --namespace stoker-test-laptop test stoker",
        "stoker-router.stoker-test-laptop:50051",
    ] {
        assert!(notes.contains(part), "no {part} in {notes}");
    }
    release.helm(&["test", "stoker", "--timeout", "2m"]).await;
    // The same text comes from this machine.
    let (_, alone, _) = stoker(&own).await;
    assert_eq!(story, alone);
    drop(router);
    release.helm(&["uninstall", "stoker", "--wait", "--timeout", "3m"]).await;
    // Helm waits for its own objects, but not for the pods of Deployments.
    wait_for("a namespace as it was before", || async {
        (release.namespace.inventory().await == before).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes cluster: run by scripts/kubernetes"]
async fn the_production_values_serve_two_models() {
    // Belongs to no namespace, so the values expect it to be there.
    let class = json!({
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
        "metadata": {"name": "stoker"}, "value": 100_000,
    });
    run("kubectl", &["apply", "-f", "-"], &class.to_string()).await.unwrap();
    let file = Some("helm/examples/production.yaml");
    let release = Release::new("production", file, &PRODUCTION).await;
    release.install().await;
    let router = release.router();
    for model in ["llama-3.1-8b-instruct", "tinyllama-1.1b-chat"] {
        let story = generate(&router, model).await;
        assert!(story.split_whitespace().count() >= 20, "{model}: {story}");
    }
    release.helm(&["test", "stoker", "--timeout", "2m"]).await;
    // The autoscaler keeps the least number of routers, and all follow all workers.
    let admin = release.admin();
    release.wait_for_live_workers(&admin, 4).await;
    let budgets = release.namespace.list("poddisruptionbudgets", "").await;
    let names = ["stoker-router", "stoker-worker-llama", "stoker-worker-tinyllama"];
    assert_eq!(strings(&budgets, "/metadata/name"), names);
    wait_for("the least number of routers", || async {
        (release.namespace.pods("router").await.len() == 3).then_some(())
    })
    .await;
    drop((admin, router));
    release.helm(&["uninstall", "stoker", "--wait", "--timeout", "3m"]).await;
    run("kubectl", &["delete", "priorityclass", "stoker"], "").await.unwrap();
}

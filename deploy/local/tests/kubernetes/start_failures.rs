//! What the termination message of a worker that cannot start says.

use serde_json::{Value, json};

use crate::{release::Release, tool::wait_for};

/// Installs one worker, and returns the termination message of its first end.
async fn termination_message(release: &Release) -> String {
    release.start().await;
    wait_for("a termination message", || async {
        let pods = release.namespace.list("pods", "app.kubernetes.io/component=worker").await;
        let container = pods.pointer("/0/status/containerStatuses/0")?.clone();
        let message = |state: &str| {
            let message = container.pointer(&format!("/{state}/terminated/message"));
            message.and_then(Value::as_str).map(str::to_owned)
        };
        message("state").or_else(|| message("lastState"))
    })
    .await
}

/// A release of one worker with the values of `entry`.
async fn worker(test: &str, entry: Value) -> Release {
    Release::new(test, None, &[&format!("workers={}", json!([entry]))]).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes cluster: run by scripts/kubernetes"]
async fn a_model_is_not_where_the_values_say() {
    let source = json!({
        "source": "persistentVolumeClaim", "persistentVolumeClaim": {"claimName": "weights"},
        "path": "llama",
    });
    let release = worker("no-model", json!({"name": "llama", "model": source})).await;
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "weights"},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}},
        },
    });
    release.namespace.create_object(&claim).await;
    let message = termination_message(&release).await;
    assert!(message.starts_with("--model: /model/llama: "), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes cluster: run by scripts/kubernetes"]
async fn a_model_does_not_fit() {
    // The cache has no more blocks than `max-num-seqs` sequences of the longest length use.
    let options = json!({
        "kv-cache-memory": "8GiB", "max-num-seqs": 4096, "max-num-batched-tokens": 4096,
    });
    let resources = json!({"limits": {"memory": "256Mi"}});
    let entry = json!({"name": "large", "options": options, "resources": resources});
    let message = termination_message(&worker("no-memory", entry).await).await;
    for part in ["--model storyteller needs", "cgroup is 256.0 MiB", "Lower --kv-cache-memory"] {
        assert!(message.contains(part), "no {part:?} in {message}");
    }
}

/// A worker on a GPU, on a node without one: what would keep its pod from being scheduled is
/// another resource.
fn on_gpu(image: &str) -> Value {
    json!({
        "name": "gpu", "image": {"repository": image},
        "gpu": {"enabled": true, "resource": "cpu"},
    })
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes cluster: run by scripts/kubernetes"]
async fn an_image_has_no_support_for_gpus() {
    let message = termination_message(&worker("no-feature", on_gpu("stoker-worker")).await).await;
    for part in ["--device cuda", "stoker-worker-cuda"] {
        assert!(message.contains(part), "no {part:?} in {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes cluster: run by scripts/kubernetes"]
async fn a_node_has_no_gpu() {
    let image = "stoker-worker-cuda";
    let message = termination_message(&worker("no-gpu", on_gpu(image)).await).await;
    for part in ["--device cuda", "GPU"] {
        assert!(message.contains(part), "no {part:?} in {message}");
    }
}

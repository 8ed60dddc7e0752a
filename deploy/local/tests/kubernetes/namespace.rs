//! A namespace of a test.

use std::{collections::BTreeSet, process::Command};

use serde_json::{Value, json};

use crate::tool::{run, strings, wait_for};

/// Kinds of objects that the cluster itself adds to namespaces and changes there.
const NOT_OURS: [&str; 3] = ["events", "events.events.k8s.io", "leases.coordination.k8s.io"];

/// A namespace. It and everything in it is removed when it is dropped.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    /// Creates a namespace that admits only pods of the restricted Pod Security Standard, and whose
    /// pods may be clients of the production values.
    pub async fn create(test: &str) -> Self {
        let namespace = Self { name: format!("stoker-test-{test}") };
        let name = namespace.name.as_str();
        run("kubectl", &["delete", "namespace", name, "--ignore-not-found"], "").await.unwrap();
        let labels =
            json!({"pod-security.kubernetes.io/enforce": "restricted", "stoker-client": "true"});
        let object = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels},
        });
        run("kubectl", &["create", "-f", "-"], &object.to_string()).await.unwrap();
        // The service account controller creates it a moment later.
        namespace.get("serviceaccount/default").await;
        namespace
    }

    /// Runs `kubectl` in this namespace.
    pub async fn try_kubectl(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let own = ["--namespace", self.name.as_str()];
        run("kubectl", &[&own[..], arguments].concat(), input).await
    }

    /// Runs `kubectl` in this namespace, which must succeed. Returns what it prints.
    pub async fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.try_kubectl(arguments, "").await;
        output.unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    /// Creates an object.
    pub async fn create_object(&self, object: &Value) {
        self.try_kubectl(&["create", "-f", "-"], &object.to_string()).await.unwrap();
    }

    /// Waits until an object exists and returns it.
    pub async fn get(&self, object: &str) -> Value {
        wait_for(object, || async {
            let found = self.try_kubectl(&["get", object, "--output", "json"], "").await;
            found.ok().map(|text| serde_json::from_str(&text).unwrap())
        })
        .await
    }

    /// The objects of a kind that have these labels.
    pub async fn list(&self, kind: &str, selector: &str) -> Value {
        let arguments = ["get", kind, "--selector", selector, "--output", "json"];
        let list: Value = serde_json::from_str(&self.kubectl(&arguments).await).unwrap();
        list["items"].clone()
    }

    /// Names of the pods of a component of the chart, or of all of its workers.
    pub async fn pods(&self, component: &str) -> BTreeSet<String> {
        let selector = format!("app.kubernetes.io/component={component}");
        strings(&self.list("pods", &selector).await, "/metadata/name").into_iter().collect()
    }

    /// Every object in the namespace, as `KIND/NAME`, without those that the cluster changes there.
    pub async fn inventory(&self) -> BTreeSet<String> {
        let kinds = ["api-resources", "--verbs=list", "--namespaced", "--output=name"];
        let kinds = self.kubectl(&kinds).await;
        let kinds: Vec<_> = kinds.lines().filter(|kind| !NOT_OURS.contains(kind)).collect();
        let arguments = ["get", &kinds.join(","), "--output=name", "--ignore-not-found"];
        self.kubectl(&arguments).await.lines().map(str::to_owned).collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let arguments = ["delete", "namespace", self.name.as_str(), "--wait=false"];
        let _ = Command::new("kubectl").args(arguments).output();
        // Streams that run would keep pods, and with them the memory of the node.
        let pods = ["delete", "pods", "--all", "--force", "--namespace", self.name.as_str()];
        let _ = Command::new("kubectl").args(pods).output();
    }
}

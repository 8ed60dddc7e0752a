//! A release of the chart.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    namespace::Namespace,
    port_forward::PortForward,
    tool::{run, wait_for},
};

/// Name of the release in every namespace.
const NAME: &str = "stoker";
/// Values of every release: where the images of `scripts/images` are, and requests of CPU and memory
/// with which a small node has room for several workers.
const COMMON: [&str; 4] = [
    r#"image={"registry": "localhost", "tag": "dev"}"#,
    r#"router.resources.requests={"cpu": "20m", "memory": "32Mi"}"#,
    r#"workerDefaults.resources.requests={"cpu": "50m", "memory": "64Mi"}"#,
    r#"test.resources.requests={"cpu": "20m", "memory": "32Mi"}"#,
];
/// Port of the admin listeners.
const ADMIN: u16 = 9051;

/// An installed release.
pub struct Release {
    pub namespace: Namespace,
    values: Vec<String>,
}

impl Release {
    /// A release that is not installed yet, of a file of values if there is one, and of values that
    /// `helm --set-json` takes, as `KEY=JSON`.
    pub async fn new(test: &str, file: Option<&str>, values: &[&str]) -> Self {
        let namespace = Namespace::create(test).await;
        let file = file.into_iter().flat_map(|file| ["--values", file]);
        let set = COMMON.iter().chain(values).flat_map(|value| ["--set-json", *value]);
        Self { namespace, values: file.chain(set).map(str::to_owned).collect() }
    }

    /// Runs a command of `helm` for this release, which must succeed.
    pub async fn helm(&self, command: &[&str]) -> String {
        let own = ["--namespace", self.namespace.name.as_str()];
        let output = run("helm", &[&own[..], command].concat(), "").await;
        output.unwrap_or_else(|error| panic!("helm {command:?}: {error}"))
    }

    /// Installs it without waiting for its pods.
    pub async fn start(&self) -> String {
        self.deploy("install", &[]).await
    }

    /// Installs it and waits until it is ready. Returns the notes.
    pub async fn install(&self) -> String {
        self.deploy("install", &["--wait", "--timeout", "4m"]).await
    }

    /// Installs it anew with further values, and waits until the new pods are ready.
    pub async fn upgrade(&self, values: &[&str]) {
        let set = values.iter().flat_map(|value| ["--set-json", *value]);
        let flags: Vec<_> = set.chain(["--wait", "--timeout", "5m"]).collect();
        self.deploy("upgrade", &flags).await;
    }

    async fn deploy(&self, command: &str, flags: &[&str]) -> String {
        let values = self.values.iter().map(String::as_str);
        let all: Vec<_> = [command, NAME, "helm"].into_iter().chain(values).collect();
        self.helm(&[&all[..], flags].concat()).await
    }

    /// A port forward to the clients' port of the routers.
    pub fn router(&self) -> PortForward {
        PortForward::start(&self.namespace, "service/stoker-router", 50051)
    }

    /// A port forward to the admin port of a router.
    pub fn admin(&self) -> PortForward {
        PortForward::start(&self.namespace, "deployment/stoker-router", ADMIN)
    }

    /// Waits until the router behind `admin` has exactly `count` live workers. Returns their ids.
    pub async fn wait_for_live_workers(&self, admin: &PortForward, count: usize) -> Vec<String> {
        wait_for(&format!("{count} live workers"), || async {
            let status = admin.status().await;
            let workers: Vec<_> = live(&status).map(|row| text(row, "worker")).collect();
            (workers.len() == count).then_some(workers)
        })
        .await
    }

    /// Waits until every live worker runs at least `each` requests, and all of them `total`.
    pub async fn wait_for_running(&self, admin: &PortForward, each: u64, total: u64) {
        wait_for(&format!("{total} running requests"), || async {
            let status = admin.status().await;
            let running: Vec<_> =
                live(&status).map(|row| row["running"].as_u64().unwrap_or_default()).collect();
            let enough = running.iter().all(|count| *count >= each);
            (enough && running.iter().sum::<u64>() >= total).then_some(())
        })
        .await;
    }

    /// Waits until none of these pods exists.
    pub async fn wait_until_gone(&self, component: &str, pods: &BTreeSet<String>) {
        wait_for(&format!("the end of {pods:?}"), || async {
            self.namespace.pods(component).await.is_disjoint(pods).then_some(())
        })
        .await;
    }
}

fn live(status: &Value) -> impl Iterator<Item = &Value> {
    status["workers"].as_array().unwrap().iter().filter(|row| row["state"] == "live")
}

/// The string at `key`.
pub fn text(object: &Value, key: &str) -> String {
    object[key].as_str().unwrap_or_default().to_owned()
}

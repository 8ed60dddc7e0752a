//! A load from inside of the cluster, whose responses must be those of an undisturbed worker.

use std::fs;

use serde_json::{Value, json};

use crate::{
    namespace::Namespace,
    support::{Process, load_test, run},
    tool::wait_for,
};

/// Name of the pod, and of the digests that it expects.
const NAME: &str = "load";

/// A pod that sends requests to the release's routers.
pub struct Load<'a> {
    namespace: &'a Namespace,
}

impl<'a> Load<'a> {
    /// Records the responses to a load, which are flags of `stoker-loadtest`, on a worker on this
    /// machine, with `model` as its flags. Starts the load in the cluster, with additional flags.
    pub async fn start(namespace: &'a Namespace, model: &[&str], load: &str, flags: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let digests = folder.path().join("digests.jsonl");
        let limits = ["--max-num-seqs", "512", "--max-num-queued-reqs", "16384"];
        let worker = Process::start("stoker-worker", &[model, &limits].concat());
        let save = format!("{load} --save-digests {}", digests.display());
        let (code, json) = run(load_test(&worker.address, &save)).await;
        assert_eq!(code, Some(0), "the undisturbed load failed: {json:#}");
        namespace
            .create_object(&json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME},
                "data": {"digests.jsonl": fs::read_to_string(digests).unwrap()},
            }))
            .await;
        let own = "--endpoint stoker-router:50051 --connections 8 --json - \
                   --expect /digests/digests.jsonl";
        let arguments: Vec<_> =
            [own, load, flags].iter().flat_map(|text| text.split_whitespace()).collect();
        namespace.create_object(&pod(&arguments)).await;
        let load = Self { namespace };
        wait_for("the start of the load", || async {
            (load.phase().await != "Pending").then_some(())
        })
        .await;
        load
    }

    async fn phase(&self) -> String {
        let pod = self.namespace.get(&format!("pod/{NAME}")).await;
        pod["status"]["phase"].as_str().unwrap_or_default().to_owned()
    }

    /// Fails if the load is over: what has been done to the cluster would not have affected it.
    pub async fn assert_running(&self) {
        let phase = self.phase().await;
        assert_eq!(phase, "Running", "{}", self.log().await);
    }

    async fn log(&self) -> String {
        self.namespace.kubectl(&["logs", NAME]).await
    }

    /// Waits for the end of the load. Every request must be complete, with the response of the
    /// undisturbed worker.
    pub async fn end(self) -> Results {
        let phase = wait_for("the end of the load", || async {
            let phase = self.phase().await;
            (phase != "Running").then_some(phase)
        })
        .await;
        let log = self.log().await;
        assert_eq!(phase, "Succeeded", "{log}");
        // Progress is in the same log.
        let begin = log.find("\n{").map_or(0, |at| at + 1);
        let mut values = serde_json::Deserializer::from_str(&log[begin..]).into_iter::<Value>();
        let json = values.next().unwrap_or_else(|| panic!("{log}")).unwrap();
        let results = Results(json);
        let sent = results.number("/requests/sent");
        assert!(sent > 0.0, "{:#}", results.0);
        assert_eq!(results.number("/requests/complete"), sent, "{:#}", results.0);
        assert_eq!(results.number("/verify/matched"), sent, "{:#}", results.0);
        results
    }
}

/// What the load test reports.
pub struct Results(pub Value);

impl Results {
    /// The number at a JSON pointer.
    pub fn number(&self, pointer: &str) -> f64 {
        let number = self.0.pointer(pointer).and_then(Value::as_f64);
        number.unwrap_or_else(|| panic!("no {pointer} in {:#}", self.0))
    }

    /// Number of responses that another worker resumed.
    pub fn resumed(&self) -> u64 {
        let count = self.0.pointer("/longest_pause_resumed_seconds/count");
        count.and_then(Value::as_u64).unwrap_or_default()
    }
}

fn pod(arguments: &[&str]) -> Value {
    let container = json!({
        "name": NAME,
        "image": "localhost/stoker-loadtest:dev",
        "args": arguments,
        "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": true,
        },
        "volumeMounts": [{"name": "digests", "mountPath": "/digests"}],
    });
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": "digests", "configMap": {"name": NAME}}],
        },
    })
}

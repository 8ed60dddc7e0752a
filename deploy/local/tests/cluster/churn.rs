//! Churn under load: a real etcd that restarts, workers that join and leave, and 300 streams of two
//! kinds of clients. No stream is lost, and every completion equals that of an undisturbed cluster.

use std::{collections::BTreeMap, path::Path, process::Stdio, time::Duration};

use serde_json::Value;
use stoker_proto::v1::GetModelInfoRequest;
use tokio::{process::Command, time::timeout};

use crate::{
    clients::{find, root},
    discovery::{RegisteredWorkers, router, wait_for_live, worker},
    etcd_server::Etcd,
    support::{control, load_test, run, wait_for_load},
};

/// Limit of every wait, far longer than any of them takes: a test that reaches it fails.
const TEST_TIMEOUT: Duration = Duration::from_secs(300);
/// Concurrent streams of each kind of client: 300 in total.
const EACH: usize = 150;
/// Requests of each kind of client.
const REQUESTS: usize = 300;

/// Runs the Python client and returns its results by index.
async fn python(python: &Path, address: &str) -> BTreeMap<u64, Value> {
    let mut many = Command::new(python);
    many.arg(root().join("examples/python/many.py"))
        .args(["--endpoint", address, "--max-tokens", "150", "--seed", "1000"])
        .args(["--concurrency", &EACH.to_string(), "--requests", &REQUESTS.to_string()])
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    let output = timeout(TEST_TIMEOUT, many.output()).await.unwrap().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{out}");
    let objects = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    objects.map(|object| (object["index"].as_u64().unwrap(), object)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_streams_lose_nothing_while_workers_and_etcd_come_and_go() {
    let works = ["-c", "import grpc, grpc_tools, grpc_status"];
    let Some(interpreter) = find("STOKER_TEST_PYTHON", "python3", &works) else { return };
    let folder = tempfile::tempdir().unwrap();
    let digests = folder.path().join("digests.jsonl").display().to_string();
    let load =
        format!("--requests {REQUESTS} --concurrency {EACH} --synthetic 16:100-200 --seed 7");

    for mut etcd in Etcd::each() {
        let mut registered = RegisteredWorkers::of(&etcd);
        let [a, b, c] = ["a", "b", "c"].map(|id| worker(&etcd, id));
        let router = router(&etcd);
        let mut info = control(&a.address).await;
        let info = info.get_model_info(GetModelInfoRequest::default()).await.unwrap();
        let blocks = info.into_inner().capacity.unwrap().kv_blocks;
        let mut view = control(&router.address).await;
        wait_for_live(&mut view, 3, blocks).await;

        // Completions of the undisturbed cluster.
        let reference = load_test(&router.address, &format!("{load} --save-digests {digests}"));
        let (code, json) = run(reference).await;
        assert_eq!(code, Some(0), "{json:#}");
        let reference = python(&interpreter, &router.address).await;
        assert_eq!(reference.len(), REQUESTS);

        let command = load_test(&router.address, &format!("{load} --expect {digests}"));
        let ours = tokio::spawn(run(command));
        let (path, address) = (interpreter.clone(), router.address.clone());
        let theirs = tokio::spawn(async move { python(&path, &address).await });
        let mut watch = control(&router.address).await;
        wait_for_load(&mut watch, |load| load.running + load.waiting > 250).await;

        // A worker joins, another leaves, and etcd crashes and restarts.
        let d = worker(&etcd, "d");
        registered.wait_for(&["d"]).await;
        wait_for_live(&mut view, 4, blocks).await;
        b.terminate();
        registered.wait_until_gone("b").await;
        etcd.kill();
        etcd.start();
        wait_for_load(&mut watch, |load| load.running > 0).await;
        assert!(
            !ours.is_finished() && !theirs.is_finished(),
            "the load ended before the changes did"
        );
        let status = tokio::task::spawn_blocking(|| b.wait()).await.unwrap();
        assert_eq!(status.code(), Some(0), "the drained worker exits with 0");

        let (code, json) = timeout(TEST_TIMEOUT, ours).await.unwrap().unwrap();
        assert_eq!(code, Some(0), "{json:#}");
        assert_eq!(json["verify"]["matched"], REQUESTS, "{json:#}");
        let theirs = timeout(TEST_TIMEOUT, theirs).await.unwrap().unwrap();
        assert_eq!(theirs.len(), REQUESTS);
        for (index, completion) in &theirs {
            assert_eq!(completion["text_sha256"], reference[index]["text_sha256"], "{completion}");
        }
        let joined = theirs.values().filter(|completion| completion["worker"] == "d").count();
        assert!(joined > 0, "the new worker served no request");
        drop((a, c, d));
    }
}

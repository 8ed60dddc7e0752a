//! Every query of the dashboards and of the rules, executed by a real Prometheus that scraped a real
//! cluster under load.

use std::{fs, process::Command, time::Duration};

use serde_json::Value;
use tokio::time::timeout;

use crate::{
    clients::{find, root},
    etcd_server::Etcd,
    prometheus::Prometheus,
    support::{Process, TEST_TIMEOUT, load_test, run, scrape},
};

/// What is the same for all processes. The collector is not there.
const EXPORT: [&str; 4] = ["--metrics-listen", "127.0.0.1:0", "--otlp-endpoint", "127.0.0.1:1"];
/// The interval of rates: a few scrapes.
const RATES: &str = "10s";

/// Reads the queries of all panels and rules.
fn queries() -> Vec<Value> {
    let listed = Command::new(root().join("scripts/dashboards"))
        .args(["--list", "--interval", RATES])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&listed.stderr);
    assert!(listed.status.success(), "{error}");
    serde_json::from_slice(&listed.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_dashboards_and_rules_returns_data() {
    let Some(program) = find("STOKER_TEST_PROMETHEUS", "prometheus", &["--version"]) else {
        return;
    };
    let etcd = Etcd::each().next().unwrap();
    let discovery = ["--etcd", etcd.url()];
    let worker =
        |own: &[&str]| Process::start("stoker-worker", &[&discovery[..], &EXPORT, own].concat());
    let speculating = ["--model", "storyteller", "--speculate", "ngram", "--worker-id", "a"];
    let workers = [worker(&speculating), worker(&["--model", "storyteller", "--worker-id", "b"])];
    let router = Process::start("stoker-router", &[&discovery[..], &EXPORT].concat());
    let ready = async {
        while scrape(&router).await["stoker_router_workers{state=\"live\"}"] != 2.0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(TEST_TIMEOUT, ready).await.unwrap();
    let rules = root().join("deploy/prometheus/rules");
    let targets = [&router, &workers[0], &workers[1]];
    let prometheus = Prometheus::start(&program, &targets, Some(&rules), &[]);
    // Until the last query has data, there is load.
    let load = tokio::spawn(async move {
        let address = router.address.clone();
        loop {
            let requests = "--requests 40 --concurrency 8 --synthetic 64:48";
            let (code, json) = run(load_test(&address, requests)).await;
            assert_eq!(code, Some(0), "{json:#}");
            let _ = &router;
        }
    });
    let (mut panels, mut checked) = (0, 0);
    for query in queries() {
        let expression = query["expr"].as_str().unwrap();
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let path = format!("/api/v1/query?query={encoded}");
        // An alert that does not fire has no data. It must be valid all the same.
        let may_be_empty = query["kind"] == "alert"
            || query["may_be_empty"].as_str().is_some_and(|why| !why.is_empty());
        let has_data = |data: &Value| {
            let rows = data["result"].as_array()?;
            let finite = |row: &Value| row["value"][1].as_str().is_some_and(|v| v != "NaN");
            (may_be_empty || rows.iter().any(finite)).then_some(())
        };
        prometheus.until(&path, has_data).await;
        panels += u32::from(query["panel"].is_string());
        checked += 1;
    }
    assert!(panels > 80 && checked > panels, "{panels} of {checked}");
    assert!(!load.is_finished(), "the load failed");
    load.abort();
    // Prometheus itself evaluates all rules without an error.
    let healthy = |data: &Value| {
        let groups = data["groups"].as_array()?;
        let rules = groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten());
        for rule in rules {
            match rule["health"].as_str()? {
                "ok" => {}
                "unknown" => return None,
                _ => panic!("{rule:#}"),
            }
        }
        (!groups.is_empty()).then_some(())
    };
    prometheus.until("/api/v1/rules", healthy).await;
    let files = fs::read_dir(&rules).unwrap().count();
    assert!(files >= 4, "{files} files of rules");
}

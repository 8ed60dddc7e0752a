//! `stoker status`: the workers of a router at a glance.

use std::net::TcpListener;

use serde_json::Value;
use stoker_proto::v1::DrainRequest;
use stoker_shared::VERSION;
use tokio::time::timeout;

use crate::support::{Process, TEST_TIMEOUT, control, inference, request, stoker, wait_for_load};

/// Returns the object of `stoker status --json`.
pub async fn status(router: &Process) -> Value {
    let (code, out, error) = stoker(&["status", "--endpoint", &router.admin, "--json"]).await;
    assert_eq!(code, Some(0), "{error}");
    serde_json::from_str(&out).unwrap()
}

/// Waits until the status of the worker at `address` has `value` under `key`, and returns it.
pub async fn wait_for_status(router: &Process, address: &str, key: &str, value: &Value) -> Value {
    let poll = async {
        loop {
            let listed = status(router).await;
            let workers = listed["workers"].as_array().unwrap();
            let worker = workers.iter().find(|worker| worker["address"] == address);
            if let Some(worker) = worker.filter(|worker| worker[key] == *value) {
                return worker.clone();
            }
        }
    };
    timeout(TEST_TIMEOUT, poll).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn models_load_health_and_versions_are_shown_for_every_worker() {
    let steady = ["--simulate", r#"step = "50ms""#, "--model-name", "steady"];
    let steady = Process::start("stoker-worker", &steady);
    let other = Process::start("stoker-worker", &["--simulate", "instant"]);
    let leaving = Process::start("stoker-worker", &["--simulate", "instant"]);
    // A port that was free a moment ago.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let workers = [&steady.address, &other.address, &leaving.address, &closed].map(String::as_str);
    let router = Process::start("stoker-router", &["--workers", &workers.join(",")]);
    for worker in [&steady, &other, &leaving] {
        wait_for_status(&router, &worker.address, "state", &"live".into()).await;
    }
    leaving.admin_client().await.drain(DrainRequest::default()).await.unwrap();
    let draining = wait_for_status(&router, &leaving.address, "state", &"draining".into()).await;
    assert_eq!(draining["worker"], leaving.id);

    let mut client = inference(&router.address).await;
    let mut long = request("Once", 1, 1_000);
    long.model = "steady".into();
    let mut stream = client.generate(long).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    wait_for_load(&mut control(&steady.address).await, |load| load.running == 1).await;
    let running = wait_for_status(&router, &steady.address, "running", &1.into()).await;
    for (key, value) in [
        ("worker", Value::from(steady.id.as_str())),
        ("state", "live".into()),
        ("model", "steady".into()),
        ("version", VERSION.into()),
        ("waiting", 0.into()),
        ("outstanding_requests", 1.into()),
        ("reason", Value::Null),
    ] {
        assert_eq!(running[key], value, "{key} in {running}");
    }
    assert!(!running["digest"].as_str().unwrap().is_empty(), "{running}");
    assert!(!running["instance_id"].as_str().unwrap().is_empty(), "{running}");
    let blocks = |key: &str| running[key].as_u64().unwrap();
    assert!(blocks("free_kv_blocks") < blocks("total_kv_blocks"), "{running}");

    let gone = wait_for_status(&router, &closed, "state", &"gone".into()).await;
    assert_eq!((&gone["worker"], &gone["running"]), (&closed.as_str().into(), &Value::Null));
    let listed = status(&router).await;
    assert_eq!(listed["workers"].as_array().unwrap().len(), 4, "{listed}");
    assert_eq!((&listed["serving"], &listed["version"]), (&true.into(), &VERSION.into()));

    let (code, table, error) = stoker(&["status", "--endpoint", &router.admin]).await;
    assert_eq!(code, Some(0), "{error}");
    let start = format!("router {VERSION} at {}: serving\n", router.admin);
    assert!(table.starts_with(&start), "{table}");
    let row = |name: &str| {
        let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines.find(|line| line.first() == Some(&name)).unwrap_or_else(|| panic!("{name}: {table}"))
    };
    assert_eq!(row(&steady.id)[1..5], ["live", "steady", "1", "0"], "{table}");
    assert_eq!(row(&leaving.id)[1], "draining", "{table}");
    assert_eq!(row(&closed)[1..3], ["gone", "-"], "{table}");
    assert_eq!(row("steady")[1..4], ["1", "1", "1"], "{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_without_workers_says_so_and_wrong_endpoints_are_named() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let router = Process::start("stoker-router", &["--workers", &closed]);
    let poll = async {
        loop {
            let (code, table, _) = stoker(&["status", "--endpoint", &router.admin]).await;
            assert_eq!(code, Some(0), "the router has responded: {table}");
            if table.contains("not serving: no worker is ready; ") && table.contains("refused") {
                break;
            }
        }
    };
    timeout(TEST_TIMEOUT, poll).await.unwrap();
    assert_eq!(status(&router).await["serving"], false);

    let worker = Process::start("stoker-worker", &["--simulate", "instant"]);
    for wrong in [&router.address, &worker.address, &worker.admin] {
        let (code, out, error) = stoker(&["status", "--endpoint", wrong]).await;
        assert_eq!((code, out.as_str()), (Some(1), ""), "{error}");
        let what = format!("--endpoint {wrong} is not the admin listener of a router");
        assert!(error.contains(&what) && error.contains("--admin-listen"), "{error}");
    }
    for command in ["status", "drain"] {
        let (code, _, error) = stoker(&[command, "--endpoint", &closed]).await;
        assert_eq!(code, Some(1), "{error}");
        assert!(error.contains(&format!("--endpoint {closed}: ")), "{error}");
        let (code, _, error) = stoker(&[command]).await;
        assert_eq!(code, Some(2), "{error}");
        assert!(error.contains("--endpoint is missing"), "{error}");
    }
}

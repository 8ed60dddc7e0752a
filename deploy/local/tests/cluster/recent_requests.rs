//! `stoker trace`, `stoker top` and `stoker generate --explain`: where the time of a request went,
//! as its routers remember it.

use std::{fs, process::Command};

use serde_json::Value;
use stoker_proto::v1::{GenerateRequest, generate_response::Event};
use tempfile::NamedTempFile;
use tokio::time::timeout;

use crate::{
    etcd_server::skip,
    support::{
        Process, TEST_TIMEOUT, complete, control, inference, output, program, request, stoker,
        wait_for_load,
    },
};

/// A worker whose steps take long enough to lose it in the middle of a response.
fn slow_worker(id: &str) -> Process {
    Process::start("stoker-worker", &["--simulate", r#"step = "20ms""#, "--worker-id", id])
}

/// Waits until the router can use a worker.
async fn until_ready(router: &Process) {
    wait_for_load(&mut control(&router.address).await, |load| load.total_kv_blocks > 0).await;
}

fn named(request_id: &str, request: GenerateRequest) -> GenerateRequest {
    GenerateRequest { request_id: request_id.into(), ..request }
}

/// Returns what `stoker trace` prints.
async fn trace(router: &Process, arguments: &[&str]) -> String {
    let endpoint = ["trace", "--endpoint", &router.admin];
    let (code, out, error) = stoker(&[&endpoint[..], arguments].concat()).await;
    assert_eq!((code, error.as_str()), (Some(0), ""), "{out}");
    out
}

/// Waits until the request has `value` under `key`, and returns it.
async fn until(router: &Process, request_id: &str, key: &str, value: Value) -> Value {
    let poll = async {
        loop {
            let (_, out, _) =
                stoker(&["trace", request_id, "--endpoint", &router.admin, "--json"]).await;
            let found: Value = serde_json::from_str(&out).unwrap_or_default();
            if found[0][key] == value {
                return found[0].clone();
            }
        }
    };
    timeout(TEST_TIMEOUT, poll).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_request_shows_both_workers_and_the_cause() {
    let workers = [slow_worker("first"), slow_worker("second")];
    let addresses = workers.each_ref().map(|worker| worker.address.as_str()).join(",");
    let router = Process::start("stoker-router", &["--workers", &addresses]);
    until_ready(&router).await;
    let mut client = inference(&router.address).await;
    let request = named("the-request", request("Once", 1, 60));
    let mut stream = client.generate(request).await.unwrap().into_inner();
    let Some(Event::Accepted(accepted)) = stream.message().await.unwrap().unwrap().event else {
        panic!("no Accepted")
    };
    stream.message().await.unwrap().unwrap();
    let running = until(&router, "the-request", "running", true.into()).await;
    assert_eq!(running["attempts"][0]["worker"], accepted.worker, "{running:#}");
    assert_eq!((&running["outcome"], &running["timings"]), (&Value::Null, &Value::Null));
    let [first, second] = workers;
    let (lost, other) = if first.id == accepted.worker { (first, second) } else { (second, first) };
    drop(lost);
    while stream.message().await.unwrap().is_some() {}

    let ended = until(&router, "the-request", "running", false.into()).await;
    let attempts = ended["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 2, "{ended:#}");
    assert_eq!(
        (&attempts[0]["worker"], &attempts[0]["cause"]),
        (&accepted.worker.into(), &Value::Null)
    );
    assert_eq!(
        (&attempts[1]["worker"], &attempts[1]["cause"]),
        (&other.id.as_str().into(), &"WORKER_LOST".into())
    );
    assert_eq!((&ended["outcome"], &ended["generated_tokens"]), (&"length".into(), &60.into()));
    assert_eq!(
        (&attempts[0]["error"], &attempts[1]["error"]),
        (&"WORKER_LOST".into(), &Value::Null)
    );
    // Stages are consecutive, and are the whole request.
    let mut at = 0.0;
    let stages = ended["stages"].as_array().unwrap();
    for stage in stages {
        let (start, took) = (&stage["start_seconds"], &stage["duration_seconds"]);
        assert!((start.as_f64().unwrap() - at).abs() < 1e-6, "{ended:#}");
        at += took.as_f64().unwrap();
    }
    assert!((ended["duration_seconds"].as_f64().unwrap() - at).abs() < 1e-6, "{ended:#}");
    // An attempt ends where the next stage begins.
    let end = |of: &Value| {
        of["start_seconds"].as_f64().unwrap() + of["duration_seconds"].as_f64().unwrap()
    };
    let resume = stages.iter().find(|stage| stage["stage"] == "resume").unwrap();
    let begin = resume["start_seconds"].as_f64().unwrap();
    assert!((end(&attempts[0]) - begin).abs() < 1e-6, "{ended:#}");
    let names: Vec<_> = stages.iter().map(|stage| stage["stage"].as_str().unwrap()).collect();
    assert_eq!(names[..3], ["admission", "route", "attempt"]);
    assert!(names.contains(&"resume") && names.last() == Some(&"attempt"), "{names:?}");

    let picture = trace(&router, &["the-request"]).await;
    for part in ["request   the-request", "length after", "WORKER_LOST", "resume ", "█"] {
        assert!(picture.contains(part), "{part:?} is missing:\n{picture}");
    }
    for secret in ["Once", &format!("{:?}", other.started)] {
        assert!(!picture.contains(secret), "{picture}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recent_requests_are_listed_and_watched() {
    let worker = Process::start("stoker-worker", &["--simulate", "instant"]);
    let arguments = ["--workers", &worker.address, "--recent-requests", "3"];
    let router = Process::start("stoker-router", &arguments);
    until_ready(&router).await;
    let mut client = inference(&router.address).await;
    for number in 0..4 {
        let request = named(&format!("number-{number}"), request("Once", number, 8));
        complete(&mut client, request).await.unwrap();
    }
    let failing = named("failing", GenerateRequest { model: "other".into(), ..request("x", 1, 1) });
    complete(&mut client, failing).await.unwrap_err();
    until(&router, "failing", "outcome", "UNKNOWN_MODEL".into()).await;
    let list = trace(&router, &[]).await;
    let ids: Vec<_> = list.lines().map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    assert_eq!(ids, ["REQUEST", "failing", "number-3", "number-2"], "{list}");
    assert_eq!(trace(&router, &["--slower-than", "1h"]).await, "no such requests\n");

    let top = ["top", "--endpoint", &router.admin, "--count", "2", "--interval", "100ms"];
    let (code, out, error) = stoker(&top).await;
    assert_eq!((code, out.lines().count()), (Some(0), 2), "{out}{error}");
    for part in ["workers 1 live", "0 running", "slowest"] {
        assert!(out.lines().all(|line| line.contains(part)), "{part:?} is missing: {out}");
    }
    // Rates are those since the sample before.
    assert!(out.lines().nth(1).unwrap().contains("tokens/s"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_shown_is_explained() {
    let worker = Process::start("stoker-worker", &["--simulate", "instant"]);
    let router = Process::start("stoker-router", &["--workers", &worker.address]);
    let absent = ["trace", "absent", "--endpoint"];
    for (arguments, code, part) in [
        (vec!["trace", "x"], 2, "--endpoint is missing"),
        (vec!["top"], 2, "--endpoint is missing"),
        (vec!["trace", "", "--endpoint", "127.0.0.1:1"], 2, "REQUEST_ID is empty"),
        (vec!["trace", "--limit", "257", "--endpoint", "127.0.0.1:1"], 2, "256"),
        (vec!["top", "--interval", "1ms", "--endpoint", "127.0.0.1:1"], 2, "below 100ms"),
        ([&absent[..], &["127.0.0.1:1"]].concat(), 1, "refused"),
        ([&absent[..], &["no-such-name.invalid:1"]].concat(), 1, "the name was not found"),
        ([&absent[..], &[&router.admin]].concat(), 1, "no request \"absent\" at this router"),
        ([&absent[..], &[&worker.admin]].concat(), 1, "is a worker, or a router of a version"),
        (vec!["top", "--endpoint", &worker.admin], 1, "is a"),
    ] {
        let (exit, out, error) = stoker(&arguments).await;
        assert!(exit == Some(code) && error.contains(part), "{arguments:?}: {exit:?} {out}{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_routers_behind_a_name_are_asked() {
    let own = ["--mount", "--propagation", "private", "sh", "-c"];
    let allowed = Command::new("unshare").args(own).arg("true").output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        skip::absent("a mount namespace", "run as root on Linux, with unshare of util-linux");
        return;
    }
    let worker = Process::start("stoker-worker", &["--simulate", "instant"]);
    let router = |admin: &str| {
        Process::start("stoker-router", &["--workers", &worker.address, "--admin-listen", admin])
    };
    let first = router("127.0.13.1:0");
    let port = first.admin.rsplit_once(':').unwrap().1.to_owned();
    let second = router(&format!("127.0.13.2:{port}"));
    for (number, router) in [&first, &second].into_iter().enumerate() {
        until_ready(router).await;
        let request = named(&format!("number-{number}"), request("Once", 1, 8));
        complete(&mut inference(&router.address).await, request).await.unwrap();
    }
    let hosts = NamedTempFile::new().unwrap();
    // The third one is a router that does not run.
    let addresses = ["127.0.13.1", "127.0.13.2", "127.0.13.3"];
    let lines: String = addresses.iter().map(|ip| format!("{ip} routers.test\n")).collect();
    fs::write(hosts.path(), lines).unwrap();
    let endpoint = format!("routers.test:{port}");
    let run = async |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").args(own);
        command.arg(r#"mount --bind "$0" /etc/hosts && exec "$@""#).arg(hosts.path());
        command.arg(program("stoker").get_program()).args(arguments);
        output(command).await
    };
    for number in 0..2 {
        let id = format!("number-{number}");
        let (code, out, error) = run(&["trace", &id, "--endpoint", &endpoint]).await;
        assert_eq!(code, Some(0), "{error}");
        assert!(out.contains(&format!("at router 127.0.13.{}", number + 1)), "{out}");
        assert!(error.contains("router 127.0.13.3"), "{error}");
    }
    let (code, out, error) = run(&["top", "--endpoint", &endpoint, "--count", "1"]).await;
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("workers 1 live") && out.contains("WARNING router 127.0.13.3"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_is_explained() {
    let explain = ["generate", "Once", "--max-tokens", "5", "--num-workers", "1", "--explain"];
    let (code, out, error) = stoker(&explain).await;
    assert_eq!(code, Some(0), "{error}");
    assert!(!out.contains("prefill"), "{out}");
    for part in ["measured here", "admission", "attempt 1 worker-1", "  prefill", "  network"] {
        assert!(error.contains(part), "{part:?} is missing:\n{error}");
    }
}

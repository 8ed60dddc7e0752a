//! `health` of the servers: exit code and one line, for health checks of containers.

use std::{net::TcpListener, process::Command};

use stoker_proto::v1::DrainRequest;

use crate::support::{Process, TEST_TIMEOUT, control, output, program, wait_for_load};

/// Returns the command `health` of a server, with an environment.
fn health(name: &str, flags: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = program(name);
    command.arg("health").args(flags).envs(environment.iter().copied());
    command
}

/// Runs `health` for the process at `address`. Returns the exit code and the line.
async fn check(name: &str, address: &str) -> (Option<i32>, String) {
    let long = format!("{}s", TEST_TIMEOUT.as_secs());
    let flags = ["--endpoint", address, "--timeout", &long];
    let (code, line, error) = output(health(name, &flags, &[])).await;
    assert_eq!((line.lines().count(), error.as_str()), (1, ""), "{line}");
    (code, line)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_is_healthy_while_a_worker_serves() {
    let worker = Process::start("stoker-worker", &["--simulate", "instant"]);
    assert_eq!(check("stoker-worker", &worker.address).await, (Some(0), "serving\n".into()));
    let router = Process::start("stoker-router", &["--workers", &worker.address]);
    wait_for_load(&mut control(&router.address).await, |load| load.total_kv_blocks > 0).await;
    assert_eq!(check("stoker-router", &router.address).await, (Some(0), "serving\n".into()));

    worker.admin_client().await.drain(DrainRequest::default()).await.unwrap();
    let (code, line) = check("stoker-worker", &worker.address).await;
    assert_eq!(code, Some(1), "{line}");
    let start = format!("not serving: {}: ", worker.address);
    assert!(line.starts_with(&start) && line.contains("draining"), "{line}");

    wait_for_load(&mut control(&router.address).await, |load| load.total_kv_blocks == 0).await;
    // The router reports the change of its workers and of its health one after the other.
    let (code, line) = loop {
        let (code, line) = check("stoker-router", &router.address).await;
        if code != Some(0) {
            break (code, line);
        }
    };
    assert_eq!(code, Some(1), "{line}");
    let why = format!("no worker is ready; {}: draining", worker.address);
    assert!(line.contains(&why), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_endpoint_is_the_listen_address_on_loopback() {
    let flags = ["--simulate", "instant", "--allow-plaintext", "--listen", ":0"];
    let worker = Process::start("stoker-worker", &flags);
    let port = worker.address.rsplit(':').next().unwrap();
    for listen in [format!(":{port}"), format!("0.0.0.0:{port}"), format!("localhost:{port}")] {
        let command = health("stoker-worker", &[], &[("STOKER_LISTEN", &listen)]);
        let (code, line, error) = output(command).await;
        assert_eq!((code, line.as_str()), (Some(0), "serving\n"), "{listen}: {line}{error}");
    }
    // A configuration file counts as well.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stoker.toml");
    std::fs::write(&file, format!("listen = ':{port}'\n")).unwrap();
    let command = health("stoker-worker", &[], &[("STOKER_CONFIG", file.to_str().unwrap())]);
    let (code, line, error) = output(command).await;
    assert_eq!((code, line.as_str()), (Some(0), "serving\n"), "{line}{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_cannot_be_reached_or_does_not_respond_is_not_healthy() {
    // Accepts connections and never reads them, like a worker that loads its model.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    for name in ["stoker-router", "stoker-worker"] {
        let flags = ["--endpoint", &address, "--timeout", "100ms"];
        let (code, line, _) = output(health(name, &flags, &[])).await;
        assert_eq!(code, Some(1), "{line}");
        assert!(line.contains(&address) && line.contains("no response within 100ms"), "{line}");
    }
    drop(silent);
    for name in ["stoker-router", "stoker-worker"] {
        let (code, line) = check(name, &address).await;
        assert_eq!(code, Some(1), "{line}");
        assert!(line.contains(&address) && line.contains("refused"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_usage_exits_with_2() {
    for name in ["stoker-router", "stoker-worker"] {
        for (flags, listen, expected) in [
            (&["--endpoint", "nowhere"][..], "", &["--endpoint", "nowhere", "host:port"][..]),
            (&["--timeout", "0s"], "", &["--timeout", "0s", "at least 1ms"]),
            (&["--timeout", "soon"], "", &["--timeout", "soon"]),
            (&[], ":0", &["--listen :0", "--endpoint"]),
        ] {
            let (code, line, error) =
                output(health(name, flags, &[("STOKER_LISTEN", listen)])).await;
            assert_eq!((code, line.as_str()), (Some(2), ""), "{name} {flags:?}: {error}");
            for part in expected {
                assert!(error.contains(part), "{part} is not in {error}");
            }
        }
        let mut help = program(name);
        help.args(["health", "--help"]);
        let (code, text, _) = output(help).await;
        assert_eq!(code, Some(0));
        for part in ["Exit codes: 0", "--timeout", "STOKER_LISTEN"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}

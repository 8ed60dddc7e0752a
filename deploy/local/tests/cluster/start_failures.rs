//! The cause of a failed start: the last line on standard error, and the termination message that
//! an orchestrator shows.

use std::{fs, path::Path, process::Command};

use crate::support::{output, program};

/// Runs a server that does not start. Returns the last line on standard error and the termination
/// message.
async fn failed(mut command: Command, message: &Path) -> (String, String) {
    // What a start that failed before has left.
    fs::write(message, "stale, and longer than most messages are: ".repeat(100)).unwrap();
    command.env("STOKER_TERMINATION_LOG", message);
    let (code, _, error) = output(command).await;
    assert_eq!(code, Some(2), "{error}");
    let last = error.lines().last().unwrap_or_default().to_owned();
    (last, fs::read_to_string(message).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_start_leaves_the_cause() {
    let folder = tempfile::tempdir().unwrap();
    let message = folder.path().join("termination-log");
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let empty = empty.to_str().unwrap();
    let mut cases = vec![
        (vec!["--model", "/models/missing"], vec!["--model", "/models/missing"]),
        (vec!["--model", empty], vec![empty, "config.json"]),
        (vec![], vec!["--model is missing"]),
        (
            vec!["--simulate", "instant", "--max-model-len", "9999999"],
            vec!["--max-model-len 9999999"],
        ),
        (
            vec!["--model", "storyteller", "--kv-cache-memory", "1B"],
            vec!["--kv-cache-memory", "give more"],
        ),
        (
            vec!["--model", "storyteller", "--listen", "no-such-host.invalid:0"],
            vec!["--listen no-such-host.invalid:0"],
        ),
    ];
    if !cfg!(feature = "cuda") {
        let cuda = vec!["--model", "storyteller", "--device", "cuda"];
        cases.push((cuda, vec!["--device cuda", "built without it", "--features cuda"]));
    }
    for (arguments, parts) in cases {
        let mut command = program("stoker-worker");
        if !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.args(&arguments);
        let (last, message) = failed(command, &message).await;
        assert_eq!(last, format!("error: {message}"), "{arguments:?}");
        for part in parts {
            assert!(message.contains(part), "{arguments:?}: {part} is not in {message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_usage_is_a_termination_message_too() {
    let folder = tempfile::tempdir().unwrap();
    let message = folder.path().join("termination-log");
    let file = folder.path().join("stoker.toml");
    fs::write(&file, "drain-timeuot = '1s'\n").unwrap();
    let file = file.to_str().unwrap();
    for (name, arguments, part) in [
        ("stoker-router", &[][..], "no workers are given"),
        ("stoker-router", &["--workers", "a:1", "--etcd", "http://a:1"], "cannot be used with"),
        ("stoker-router", &["--workers", "a:1", "--listen", "nowhere"], "the port is missing"),
        ("stoker-router", &["--config", file], "unknown key `drain-timeuot`"),
        ("stoker-worker", &["--simulate", "fast"], "--simulate"),
        ("stoker-worker", &["--config", file], "unknown key `drain-timeuot`"),
    ] {
        let mut command = program(name);
        command.args(arguments);
        let (_, message) = failed(command, &message).await;
        assert!(message.contains(part), "{name} {arguments:?}: {message}");
        assert!(!message.contains("stale"), "{message}");
    }
    // A subcommand, such as a failed health check in the same container, is no end of the server.
    let stale = "stale, and longer than most messages are: ".repeat(100);
    for arguments in [&["health", "--timeout", "soon"][..], &["health", "--endpoint", "nowhere"]] {
        for name in ["stoker-router", "stoker-worker"] {
            let mut command = program(name);
            command.args(arguments);
            let (_, message) = failed(command, &message).await;
            assert_eq!(message, stale, "{name} {arguments:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_termination_message_that_cannot_be_written_changes_nothing() {
    let mut command = program("stoker-worker");
    command.args(["--listen", "127.0.0.1:0", "--model", "/models/missing"]);
    command.env("STOKER_TERMINATION_LOG", "/no/such/folder/log");
    let (code, _, error) = output(command).await;
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("STOKER_TERMINATION_LOG /no/such/folder/log: "), "{error}");
    assert!(error.lines().last().unwrap().starts_with("error: --model: "), "{error}");
    // In Kubernetes, a container may have another file for it.
    let mut command = program("stoker-worker");
    command.args(["--listen", "127.0.0.1:0", "--model", "/models/missing"]);
    command.env("KUBERNETES_SERVICE_HOST", "10.96.0.1");
    let (code, _, error) = output(command).await;
    assert_eq!((code, error.lines().count()), (Some(2), 1), "{error}");
}

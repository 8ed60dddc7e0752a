//! Addresses that other hosts reach: what is refused without TLS and keys, and which flag allows it.

use crate::{
    authority::{Authority, text},
    support::{Process, output, program},
};

const ROUTER: &[&str] = &["stoker-router", "--workers", "127.0.0.1:1"];
const WORKER: &[&str] = &["stoker-worker", "--simulate", "instant"];
const CLUSTER: &[&str] = &["stoker", "serve"];
const EVERY: [&str; 2] = [":0", "0.0.0.0:0"];

/// The last line of a program that refuses to start.
async fn refused(flags: &[&str]) -> String {
    let mut command = program(flags[0]);
    command.args(&flags[1..]);
    if !flags.contains(&"--listen") {
        command.args(["--listen", "127.0.0.1:0"]);
    }
    let (code, _, error) = output(command).await;
    assert_eq!(code, Some(2), "{flags:?}: {error}");
    error.lines().last().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_off_loopback_needs_tls_or_a_flag() {
    for flags in [ROUTER, WORKER, CLUSTER] {
        for address in EVERY {
            for flag in ["--listen", "--admin-listen", "--http-listen"] {
                if flag == "--http-listen" && flags == WORKER {
                    continue;
                }
                let error = refused(&[flags, &[flag, address]].concat()).await;
                let start = format!("error: {flag} ");
                assert!(error.starts_with(&start), "{error}");
                for part in ["not encrypted", "--tls-cert and --tls-key", "--allow-plaintext"] {
                    assert!(error.contains(part), "{part}: {error}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_off_loopback_needs_keys_or_a_flag() {
    let ours = Authority::new();
    let own = ours.issue("router", &["router.example"]);
    let tls = ["--tls-cert", text(&own.cert), "--tls-key", text(&own.key)];
    // `stoker` has TLS here, since its tests build the whole workspace.
    for flags in [ROUTER, CLUSTER] {
        for security in [&["--allow-plaintext"][..], &tls] {
            for flag in ["--listen", "--http-listen"] {
                let error = refused(&[flags, security, &[flag, ":0"]].concat()).await;
                let start = format!("error: {flag} ");
                assert!(error.starts_with(&start), "{error}");
                for part in ["clients need no key", "--api-keys", "--allow-anonymous"] {
                    assert!(error.contains(part), "{part}: {error}");
                }
            }
        }
    }
    let start = |flags: &[&str]| Process::start(flags[0], &flags[1..]);
    let router = [ROUTER, &["--listen", ":0"]].concat();
    start(&[&router[..], &["--allow-plaintext", "--allow-anonymous"]].concat());
    start(&[&router[..], &tls, &["--allow-anonymous"]].concat());
    // Clients with a certificate are not anonymous.
    start(&[&router[..], &tls, &["--tls-client-ca", text(&ours.ca())]].concat());
    start(&[WORKER, &["--listen", ":0", "--allow-plaintext"]].concat());
    start(&[WORKER, &["--listen", ":0"], &tls].concat());
}

/// A variable of a container, and a configuration file, allow it too.
#[test]
fn the_environment_allows_it_too() {
    let mut command = program("stoker-router");
    command.args(["--workers", "127.0.0.1:1", "--listen", ":0"]);
    command.env("STOKER_ALLOW_PLAINTEXT", "true").env("STOKER_ALLOW_ANONYMOUS", "true");
    Process::spawn(command);
}

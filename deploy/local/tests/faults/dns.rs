//! A name in DNS whose addresses change under load: workers come, leave it, are killed, and give
//! their address to another process.
//!
//! The router runs in a mount namespace with an `/etc/hosts` of its own, and the workers listen on
//! one port of several loopback addresses, as the pods of a headless Service do.

use std::{fs, process::Command};

use tempfile::NamedTempFile;

use crate::{
    etcd_server::skip,
    fault_case::FaultCase,
    fleet::{LARGE_LIMITS, STEADY, wait_idle, wait_mid_stream, wait_router_idle},
    support::{Process, TEST_TIMEOUT, program, scrape},
};

/// The name that the router is given.
const NAME: &str = "workers.stoker.test";

/// The addresses of [`NAME`], in a file that the router sees as `/etc/hosts`.
struct Hosts(NamedTempFile);

impl Hosts {
    fn new(addresses: &[&str]) -> Self {
        let hosts = Self(NamedTempFile::new().unwrap());
        hosts.set(addresses);
        hosts
    }

    fn set(&self, addresses: &[&str]) {
        let lines: String = addresses.iter().map(|address| format!("{address} {NAME}\n")).collect();
        // In place: the mounted file is this very one.
        fs::write(self.0.path(), lines).unwrap();
    }

    /// Starts a router that looks up [`NAME`] here. Reports a skipped test and returns `None` where
    /// a mount namespace is not permitted.
    #[track_caller]
    fn router(&self, port: u16) -> Option<Process> {
        let own = ["--mount", "--propagation", "private", "sh", "-c"];
        let allowed = Command::new("unshare").args(own).arg("true").output();
        if !allowed.is_ok_and(|output| output.status.success()) {
            skip::absent("a mount namespace", "run as root on Linux, with unshare of util-linux");
            return None;
        }
        let mut command = Command::new("unshare");
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").args(own);
        command.arg(r#"mount --bind "$0" /etc/hosts && exec "$@""#).arg(self.0.path());
        command.arg(program("stoker-router").get_program());
        command.args(["--workers", &format!("{NAME}:{port}")]);
        command.args(["--metrics-listen", "127.0.0.1:0"]);
        Some(Process::spawn(command))
    }
}

/// A simulated worker at `address`, with a name of its own.
fn worker(address: &str, profile: &str) -> Process {
    let id = format!("worker-at-{address}");
    let own = ["--simulate", profile, "--listen", address, "--worker-id", &id];
    Process::start("stoker-worker", &[&own[..], &LARGE_LIMITS].concat())
}

/// Workers at `ips` that listen on the same port, which is free at the first of them.
fn workers(ips: &[&str]) -> (Vec<Process>, u16) {
    let first = worker(&format!("{}:0", ips[0]), STEADY);
    let port = first.address.rsplit_once(':').unwrap().1.parse().unwrap();
    let others = ips[1..].iter().map(|ip| worker(&format!("{ip}:{port}"), STEADY));
    ([first].into_iter().chain(others).collect(), port)
}

/// Waits until the router knows exactly these numbers of live and of lost workers.
async fn wait_for_states(router: &Process, live: u32, gone: u32) {
    let poll = async {
        loop {
            let metrics = scrape(router).await;
            let count = |state: &str| {
                let name = format!("stoker_router_workers{{state=\"{state}\"}}");
                metrics.get(&name).copied().unwrap_or_default()
            };
            if (count("live"), count("gone")) == (f64::from(live), f64::from(gone)) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(TEST_TIMEOUT, poll).await.is_ok();
    assert!(in_time, "the router does not know {live} live and {gone} lost workers");
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_a_name_come_and_go() {
    let load = "--requests 60 --concurrency 60 --synthetic 16:240";
    let case = FaultCase::new("four addresses of a name come and go", load).await;
    let ips = ["127.0.11.1", "127.0.11.2", "127.0.11.3", "127.0.11.4"];
    let (mut fleet, port) = workers(&ips);
    let hosts = Hosts::new(&ips[..2]);
    let Some(router) = hosts.router(port) else { return };
    wait_for_states(&router, 2, 0).await;
    let load = case.start(&router.address);
    let results = load
        .during(async {
            wait_mid_stream(&fleet[0], 20, 10).await;
            hosts.set(&ips);
            wait_for_states(&router, 4, 0).await;
            // The first worker stays in use without its address in the name. Once it is lost it is
            // removed; the second one stays known, since its address is listed.
            hosts.set(&ips[1..]);
            drop(fleet.drain(..2));
            wait_for_states(&router, 2, 1).await;
        })
        .await;
    results.assert_unaffected();
    assert!(results.resumed() >= 40, "{:#}", results.json);
    for worker in &fleet {
        wait_idle(worker).await;
    }
    wait_router_idle(&router).await;
    case.report(&results, None, "two workers join, one leaves the name, two are killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_reused_by_a_worker_of_another_digest() {
    let load = "--requests 40 --concurrency 40 --synthetic 16:160";
    let case = FaultCase::new("the address of a killed worker leads to another digest", load).await;
    let ips = ["127.0.12.1", "127.0.12.2"];
    let (mut fleet, port) = workers(&ips);
    let hosts = Hosts::new(&ips);
    let Some(router) = hosts.router(port) else { return };
    wait_for_states(&router, 2, 0).await;
    let load = case.start(&router.address);
    let mut stranger = None;
    let results = load
        .during(async {
            wait_mid_stream(&fleet[0], 10, 10).await;
            let address = fleet.remove(0).address.clone();
            let other = format!("{STEADY}, response_tokens = 7, context_length = 999");
            stranger = Some(worker(&address, &other));
            wait_for_states(&router, 2, 0).await;
        })
        .await;
    results.assert_unaffected();
    assert!(results.resumed() >= 10, "{:#}", results.json);
    wait_idle(&fleet[0]).await;
    wait_idle(stranger.as_ref().unwrap()).await;
    wait_router_idle(&router).await;
    case.report(&results, None, "kill -9; all streams on the worker of their digest");
}

//! Who workers and routers are to each other, and to etcd: by certificate, not by address.

use stoker_proto::v1::Routing;
use stoker_shared::{client::Client, deadline::Deadline};
use tokio::time::timeout;
use tonic::Code;

use crate::{
    authority::{Authority, Files, Use, connect, text, trusting},
    etcd_server::Etcd,
    support::{Process, TEST_TIMEOUT, request},
    tls::{start, worker},
};

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Starts a router of these workers, whose certificates have one of `identities`.
fn router(own: &Files, ca: &str, workers: &[&Process], identities: &str) -> Process {
    let workers: Vec<_> = workers.iter().map(|worker| worker.address.as_str()).collect();
    let mut flags = strings(&["--workers", &workers.join(","), "--worker-ca", ca]);
    if !identities.is_empty() {
        flags.extend(strings(&["--worker-identity", identities]));
    }
    start("stoker-router", &[flags, own.flags("--worker-client-cert", "--worker-client-key")])
}

/// Sends requests until one succeeds, and returns the worker that served it.
async fn served_by(router: &Process) -> String {
    let client = Client::connect(&router.address.parse().unwrap()).await.unwrap();
    let poll = async {
        loop {
            let call = client.generate(request("Once", 1, 2), Deadline::after(TEST_TIMEOUT)).await;
            let Ok(mut response) = call else { continue };
            let mut worker = String::new();
            while let Some(event) = response.next().await.unwrap() {
                if let stoker_proto::v1::generate_response::Event::Accepted(accepted) = event.kind {
                    worker = accepted.worker;
                }
            }
            return worker;
        }
    };
    timeout(TEST_TIMEOUT, poll).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_uses_workers_by_their_identity_and_not_by_their_address() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let ca = ours.ca();
    // Neither has the address that is dialled.
    let good = ours.issue("good", &["spiffe://example/ns/stoker/sa/worker", "w0.worker.example"]);
    let other = ours.issue("other", &["spiffe://example/ns/stoker/sa/billing"]);
    let forged = theirs.issue("forged", &["spiffe://example/ns/stoker/sa/worker"]);
    let named =
        |own: &Files, id: &str| worker(own, &["--worker-id", id, "--tls-client-ca", text(&ca)]);
    let (good, other) = (named(&good, "good"), named(&other, "other"));
    let forged = worker(&forged, &["--worker-id", "forged"]);
    let plain = Process::start("stoker-worker", &["--simulate", "instant", "--worker-id", "plain"]);
    let own = ours.issue("router", &["spiffe://example/ns/stoker/sa/router"]);
    for identities in ["spiffe://example/ns/*/sa/worker", "other.example,*.worker.example"] {
        let router = router(&own, text(&ca), &[&other, &forged, &plain, &good], identities);
        for _ in 0..8 {
            assert_eq!(served_by(&router).await, "good");
        }
        let workers = workers(&router).await;
        let reason = |worker: &Process| workers[&worker.address].clone();
        let wrong = reason(&other);
        let parts =
            ["sa/billing, not for ", identities.split(',').next().unwrap(), "--worker-identity"];
        for part in parts {
            assert!(wrong.contains(part), "{part:?}: {wrong}");
        }
        assert!(reason(&forged).contains("signed by an unknown CA"), "{}", reason(&forged));
        assert!(reason(&plain).contains("does not speak TLS"), "{}", reason(&plain));
    }
    // Without patterns every certificate of the authority is a worker's.
    let any = router(&own, text(&ca), &[&other], "");
    assert_eq!(served_by(&any).await, "other");
}

/// Why each worker of a router cannot be used, by address.
async fn workers(router: &Process) -> std::collections::HashMap<String, String> {
    let list = async || {
        let mut admin = router.admin_client().await;
        let listed = admin.list_workers(stoker_proto::v1::ListWorkersRequest {}).await.unwrap();
        listed.into_inner().workers
    };
    let poll = async {
        loop {
            let workers = list().await;
            if workers.iter().filter(|worker| !worker.reason.is_empty()).count() >= 3 {
                let reasons = workers.into_iter().map(|worker| (worker.address, worker.reason));
                return reasons.collect();
            }
        }
    };
    timeout(TEST_TIMEOUT, poll).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_accepts_routing_from_certificates_of_routers() {
    let ours = Authority::new();
    let (ca, own) = (ours.ca(), ours.issue("worker", &["127.0.0.1"]));
    let router = ours.issue("router", &["spiffe://example/ns/stoker/sa/router"]);
    let other = ours.issue("other", &["spiffe://example/ns/stoker/sa/billing"]);
    let call = async |worker: &Process, client: &Files| {
        let client = connect(&worker.address, &trusting(&ca, Some(client))).await.unwrap();
        let routing = Some(Routing { attempt: 1, ..Routing::default() });
        let mut request = request("Once", 1, 2);
        request.routing = routing;
        client.generate(request, Deadline::after(TEST_TIMEOUT)).await.map(drop)
    };
    let ca_flags = ["--tls-client-ca", text(&ca)];
    // Loopback has no meaning where certificates say who a peer is.
    let flags = [&ca_flags[..], &["--router-identity", "spiffe://example/ns/*/sa/router"]].concat();
    let strict = worker(&own, &flags);
    call(&strict, &router).await.unwrap();
    let refused = call(&strict, &other).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(
        refused.message().contains("sa/billing") && refused.message().contains("--router-identity")
    );
    let any = worker(&own, &ca_flags);
    call(&any, &other).await.unwrap();
    let none = worker(&own, &[&ca_flags[..], &["--accept-routing", "none"]].concat());
    assert_eq!(call(&none, &router).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_a_stranger_in_etcd_draws_no_traffic() {
    const PREFIX: &str = "/tls/";
    for mut etcd in Etcd::each_stopped() {
        let (ours, theirs) = (Authority::new(), Authority::new());
        let ca = ours.ca();
        let own = ours.issue("etcd", &["127.0.0.1", "127.0.0.2"]);
        let client = ours.issue("client", &["stoker.example"]);
        etcd.use_tls(text(&own.cert), text(&own.key), text(&ca));
        etcd.start();
        let mut discovery = strings(&["--etcd", etcd.url(), "--etcd-prefix", PREFIX]);
        discovery.extend(strings(&["--etcd-ca", text(&ca)]));
        discovery.extend(client.flags("--etcd-cert", "--etcd-key"));
        let simulated = strings(&["--simulate", "instant", "--etcd-lease-ttl", "2s"]);
        let good = ours.issue("good", &["w0.worker.example"]);
        let flags = strings(&["--worker-id", "good", "--tls-client-ca", text(&ca)]);
        let _good =
            start("stoker-worker", &[simulated.clone(), discovery.clone(), good.server(), flags]);
        // The stranger has a way into etcd, and serves the same model.
        let stranger = theirs.issue("stranger", &["w1.worker.example"]);
        let flags = strings(&["--worker-id", "stranger"]);
        let _stranger =
            start("stoker-worker", &[simulated, discovery.clone(), stranger.server(), flags]);
        let worker_ca =
            strings(&["--worker-ca", text(&ca), "--worker-identity", "*.worker.example"]);
        let own = client.flags("--worker-client-cert", "--worker-client-key");
        let router = start("stoker-router", &[discovery, worker_ca, own]);
        router.log_entry("not usable, retrying").await;
        for _ in 0..16 {
            assert_eq!(served_by(&router).await, "good");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_authority_of_etcd_is_named() {
    for mut etcd in Etcd::each_stopped() {
        let (ours, theirs) = (Authority::new(), Authority::new());
        let own = ours.issue("etcd", &["127.0.0.1", "127.0.0.2"]);
        etcd.use_tls(text(&own.cert), text(&own.key), text(&ours.ca()));
        etcd.start();
        let client = ours.issue("client", &["stoker.example"]);
        let address = etcd.url().strip_prefix("https://").unwrap();
        let started = async { while tokio::net::TcpStream::connect(address).await.is_err() {} };
        timeout(TEST_TIMEOUT, started).await.unwrap();
        let wrong = theirs.ca();
        let plain = etcd.url().replace("https", "http");
        let etcd_host = address;
        for (flags, why) in [
            (strings(&["--etcd", etcd.url(), "--etcd-ca", text(&wrong)]), "unknown CA"),
            (
                strings(&["--etcd", etcd.url(), "--etcd-ca", text(&ours.ca())]),
                "certificate: it is missing",
            ),
            (strings(&["--etcd", &plain]), ""),
        ] {
            let with = if why == "unknown CA" {
                client.flags("--etcd-cert", "--etcd-key")
            } else {
                Vec::new()
            };
            let router = start("stoker-router", &[flags, with]);
            // The first attempt may be logged before the address of the router.
            let logged = router.log_entry("not ready").await;
            let reason = logged["reason"].as_str().unwrap();
            assert!(reason.contains(etcd_host) && reason.contains(why), "{logged}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_identities_and_certificates_of_routers_are_refused_at_the_start() {
    let ours = Authority::new();
    let ca = text(&ours.ca()).to_owned();
    let server_only = ours.issue_for("server", &["router.example"], Use::ServerOnly);
    let as_client = server_only.flags("--worker-client-cert", "--worker-client-key");
    let flags = |words: &[&str]| strings(words);
    let router = ["stoker-router", "--workers", "a:1"];
    let worker = ["stoker-worker", "--simulate", "instant"];
    for (program, flags, part) in [
        (router, flags(&["--worker-identity", "w.example"]), "--worker-identity needs --worker-ca"),
        (router, as_client.clone(), "--worker-client-cert needs --worker-ca"),
        (router, [flags(&["--worker-ca", &ca]), as_client].concat(), "lacks clientAuth"),
        (router, flags(&["--worker-ca", "/absent"]), "--worker-ca /absent: does not exist"),
        (router, flags(&["--worker-ca", &ca, "--worker-identity", "*"]), "matches every name"),
        (router, flags(&["--worker-ca", &ca, "--worker-identity", "a b"]), "is not allowed"),
        (
            worker,
            flags(&["--router-identity", "r.example"]),
            "--router-identity needs --tls-client-ca",
        ),
        (worker, flags(&["--etcd-ca", &ca]), "--etcd-ca needs --etcd with https://"),
        (worker, flags(&["--etcd", "https://e:1", "--etcd-ca", "/absent"]), "--etcd-ca /absent"),
    ] {
        let mut command = crate::support::program(program[0]);
        command.args(&program[1..]).args(["--listen", "127.0.0.1:0"]).args(&flags);
        let (code, _, error) = crate::support::output(command).await;
        assert_eq!(code, Some(2), "{flags:?}: {error}");
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
}

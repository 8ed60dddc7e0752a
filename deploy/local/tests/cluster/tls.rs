//! TLS: handshakes with every kind of wrong peer, and certificates that are replaced.

use std::time::Duration;

use stoker_shared::{
    client::{Client, Credentials},
    deadline::Deadline,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    authority::{Authority, Files, Use, connect, replace, text, trusting},
    support::{Process, TEST_TIMEOUT, http, output, program, request, stoker},
};

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Starts a program with these flags.
pub fn start(name: &str, flags: &[Vec<String>]) -> Process {
    let mut command = program(name);
    command.args(flags.concat());
    Process::spawn(command)
}

/// Starts a simulated worker with this certificate.
pub fn worker(own: &Files, flags: &[&str]) -> Process {
    start("stoker-worker", &[strings(&["--simulate", "instant"]), own.server(), strings(flags)])
}

/// The error of a call to the process at `address`.
async fn error(address: &str, credentials: &Credentials) -> String {
    let client = match connect(address, credentials).await {
        Ok(client) => client,
        Err(error) => return error,
    };
    match client.generate(request("Once", 1, 2), Deadline::after(TEST_TIMEOUT)).await {
        Ok(_) => panic!("the call succeeded"),
        Err(error) => error.to_string(),
    }
}

/// A call to the process at `address` succeeds.
async fn works(address: &str, credentials: &Credentials) {
    let client = connect(address, credentials).await.unwrap();
    complete(&client).await;
}

async fn complete(client: &Client) {
    let deadline = Deadline::after(TEST_TIMEOUT);
    let mut response = client.generate(request("Once", 1, 2), deadline).await.unwrap();
    while response.next().await.unwrap().is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_peer_is_told_what_is_wrong() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let own = ours.issue("worker", &["127.0.0.1", "worker.example"]);
    let ca = ours.ca();
    let server = worker(&own, &["--metrics-listen", "127.0.0.1:0"]);
    works(&server.address, &trusting(&ca, None)).await;

    let unknown = error(&server.address, &trusting(&theirs.ca(), None)).await;
    assert!(unknown.contains("signed by an unknown CA"), "{unknown}");
    let port = server.address.rsplit(':').next().unwrap();
    let wrong_name = error(&format!("127.0.0.2:{port}"), &trusting(&ca, None)).await;
    assert!(wrong_name.contains("refused"), "nothing listens there: {wrong_name}");
    let wrong_name = error(&format!("localhost:{port}"), &trusting(&ca, None)).await;
    assert!(wrong_name.contains("not for localhost"), "{wrong_name}");
    let mut named = trusting(&ca, None);
    named.tls.tls_server_name = Some("worker.example".into());
    works(&format!("localhost:{port}"), &named).await;

    // A client without TLS at a port with TLS, over HTTP/2 and HTTP/1.1.
    let plain = Client::connect(&server.address.parse().unwrap()).await.unwrap();
    let status = plain.generate(request("Once", 1, 2), Deadline::after(TEST_TIMEOUT)).await;
    let status = status.err().unwrap().to_string();
    assert!(status.contains("this port speaks TLS: connect with https://"), "{status}");
    let mut socket = TcpStream::connect(&server.address).await.unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut response = String::new();
    socket.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 400 ") && response.contains("https://"), "{response}");

    // The reverse.
    let bare = Process::start("stoker-worker", &["--simulate", "instant"]);
    let status = error(&bare.address, &trusting(&ca, None)).await;
    assert!(status.contains("does not speak TLS on this port"), "{status}");
    bare.log_entry("no TLS handshake").await;

    // Each of them is counted, also the last one, whose connection is still open.
    let metrics = server.metrics.as_ref().unwrap();
    let counted = async {
        loop {
            let (_, body) = http(metrics, "GET", "/metrics", "").await;
            let closed = "stoker_connections_closed_total{cause=\"tls\"} ";
            let count = body.lines().find_map(|line| line.strip_prefix(closed)).unwrap().to_owned();
            if count.parse::<u32>().unwrap() >= 4 {
                return body;
            }
        }
    };
    let body = timeout(TEST_TIMEOUT, counted).await.unwrap();
    let expiry = "stoker_certificate_expiry_timestamp_seconds{secret=\"server\"} 3786912000";
    assert!(body.contains(expiry), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_need_a_certificate_that_the_authority_has_signed() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let own = ours.issue("worker", &["127.0.0.1"]);
    let ca = ours.ca();
    let server = worker(&own, &["--tls-client-ca", text(&ca)]);
    let client = ours.issue("client", &["client.example"]);
    works(&server.address, &trusting(&ca, Some(&client))).await;
    let none = error(&server.address, &trusting(&ca, None)).await;
    assert!(none.contains("requires a client certificate; give --tls-cert"), "{none}");
    let foreign = theirs.issue("client", &["client.example"]);
    let unknown = error(&server.address, &trusting(&ca, Some(&foreign))).await;
    assert!(unknown.contains("does not trust the CA"), "{unknown}");
    // A command checks its own certificate before it connects.
    let expired = ours.issue_for("expired", &["client.example"], Use::Expired);
    let refused = error(&server.address, &trusting(&ca, Some(&expired))).await;
    assert!(refused.contains("expired.crt: entry 1 expired on Feb  3 00:00:00 2021"), "{refused}");
    let logged = server.log_entry("no TLS handshake").await;
    assert!(!logged["cause"].as_str().unwrap().is_empty(), "{logged}");

    // The health check presents the certificate of the process itself.
    let mut health = program("stoker-worker");
    health.arg("health").env("STOKER_LISTEN", &server.address);
    health.env("STOKER_TLS_CERT", &own.cert).env("STOKER_TLS_KEY", &own.key);
    let (code, line, error) = output(health).await;
    assert_eq!((code, &*line), (Some(0), "serving\n"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_without_a_lost_stream() {
    let (old, new) = (Authority::new(), Authority::new());
    let own = old.issue("worker", &["127.0.0.1"]);
    let profile = r#"step = "20ms""#;
    let flags = ["--simulate", profile, "--metrics-listen", "127.0.0.1:0"];
    let server = start("stoker-worker", &[strings(&flags), own.server()]);
    let metrics = server.metrics.clone().unwrap();
    let reloads = async |outcome: &str| {
        let (_, body) = http(&metrics, "GET", "/metrics", "").await;
        let name =
            format!("stoker_secret_reloads_total{{secret=\"server\",outcome=\"{outcome}\"}} ");
        let value = body.lines().find_map(|line| line.strip_prefix(&*name)).unwrap().to_owned();
        let last = "stoker_secret_last_reload_successful{secret=\"server\"} ";
        let last = body.lines().find_map(|line| line.strip_prefix(last)).unwrap().to_owned();
        (value.parse::<u32>().unwrap(), last)
    };
    let until = async |outcome: &str, count: u32| {
        let poll = async {
            while reloads(outcome).await.0 < count {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(TEST_TIMEOUT, poll).await.unwrap();
    };
    let client = connect(&server.address, &trusting(&old.ca(), None)).await.unwrap();
    let deadline = Deadline::after(TEST_TIMEOUT);
    let mut running = client.generate(request("Once", 1, 400), deadline).await.unwrap();
    running.next().await.unwrap();

    // A certificate whose key is another: the old one stays.
    let other = new.issue("other", &["127.0.0.1"]);
    replace(&own.cert, &std::fs::read_to_string(&other.cert).unwrap());
    until("failure", 1).await;
    assert_eq!(reloads("success").await, (0, "0".into()));
    let failed = server.log_entry("not reloaded; the previous one stays in use").await;
    let why = failed["error"].as_str().unwrap();
    assert!(
        why.contains("--tls-key") && why.contains("is not the key of the certificate"),
        "{why}"
    );
    works(&server.address, &trusting(&old.ca(), None)).await;

    // The key follows.
    replace(&own.key, &std::fs::read_to_string(&other.key).unwrap());
    until("success", 1).await;
    assert_eq!(reloads("failure").await, (1, "1".into()));
    works(&server.address, &trusting(&new.ca(), None)).await;
    let refused = error(&server.address, &trusting(&old.ca(), None)).await;
    assert!(refused.contains("unknown CA"), "{refused}");

    // A file that is gone, and comes back.
    std::fs::remove_file(&own.key).unwrap();
    until("failure", 2).await;
    works(&server.address, &trusting(&new.ca(), None)).await;

    let mut tokens = 0;
    while let Some(event) = running.next().await.unwrap() {
        tokens +=
            u32::from(matches!(event.kind, stoker_proto::v1::generate_response::Event::Token(_)));
    }
    assert!(tokens >= 300, "the stream that was open all the time is whole: {tokens}");
    complete(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_files_are_refused_at_the_start_with_the_fix() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let own = ours.issue("own", &["127.0.0.1"]);
    let other = ours.issue("other", &["127.0.0.1"]);
    let expired = ours.issue_for("old", &["127.0.0.1"], Use::Expired);
    let nameless = ours.issue("nameless", &[]);
    let file = |name: &str, content: &str| {
        let path = ours.folder().join(name);
        replace(&path, content);
        text(&path).to_owned()
    };
    let pem = |path: &std::path::Path| std::fs::read_to_string(path).unwrap();
    let (cert, key, ca) = (text(&own.cert), text(&own.key), text(&ours.ca()).to_owned());
    let open = file("open.key", &pem(&own.key));
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let broken_entry = pem(&ours.ca()).replacen("MII", "!!!", 1);
    let broken = file("broken.crt", &format!("{}{broken_entry}", theirs.pem()));
    let not_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let garbage = file("garbage.crt", &format!("{}{not_der}", ours.pem()));
    let typo = file(
        "typo.crt",
        &format!("{}{}", ours.pem(), ours.pem().replace("BEGIN CERT", "BEGIN CRET")),
    );
    let cut = file("cut.crt", &ours.pem()[..100]);
    let empty = file("empty.crt", "");
    let with_key = file("with_key.crt", &format!("{}{}", ours.pem(), pem(&own.key)));
    let encrypted = file(
        "encrypted.key",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let folder = text(ours.folder()).to_owned();
    let absent = format!("{folder}/absent");
    let tls = |cert: &str, key: &str| strings(&["--tls-cert", cert, "--tls-key", key]);
    let with_ca = |ca: &str| [tls(cert, key), strings(&["--tls-client-ca", ca])].concat();
    for (flags, parts) in [
        (strings(&["--tls-cert", cert]), vec!["--tls-cert needs --tls-key"]),
        (strings(&["--tls-key", key]), vec!["--tls-key needs --tls-cert"]),
        (strings(&["--tls-client-ca", &ca]), vec!["--tls-client-ca needs --tls-cert"]),
        (strings(&["--metrics-tls"]), vec!["--metrics-tls needs --tls-cert"]),
        (tls(&absent, key), vec!["--tls-cert", "absent: does not exist", "secret is mounted"]),
        (tls(cert, &absent), vec!["--tls-key", "absent: does not exist"]),
        (tls(&folder, key), vec!["--tls-cert", "is no regular file"]),
        (
            tls(cert, &open),
            vec!["--tls-key", "open.key: has mode 0644", "chmod 600", "defaultMode"],
        ),
        (
            tls(cert, text(&other.key)),
            vec!["--tls-key", "is not the key of the certificate in --tls-cert"],
        ),
        (
            tls(text(&nameless.cert), text(&nameless.key)),
            vec!["nameless.crt", "subject alternative name"],
        ),
        (
            tls(text(&expired.cert), text(&expired.key)),
            vec!["old.crt: entry 1 expired on Feb  3", "renew"],
        ),
        (tls(&ca, key), vec!["ca.crt: begins with the certificate of an authority"]),
        (tls(&empty, key), vec!["empty.crt: has no certificate"]),
        (tls(key, key), vec!["line 1 is `-----BEGIN PRIVATE KEY-----`"]),
        (tls(cert, cert), vec!["--tls-key", "has no private key"]),
        (tls(cert, &encrypted), vec!["encrypted.key: is encrypted with a passphrase"]),
        (with_ca(&broken), vec!["--tls-client-ca", "broken.crt: entry 2 is broken"]),
        (with_ca(&garbage), vec!["--tls-client-ca", "garbage.crt: entry 2 is not a certificate"]),
        (with_ca(&typo), vec!["typo.crt: line", "BEGIN CRETIFICATE"]),
        (with_ca(&cut), vec!["cut.crt: entry 1 is broken"]),
        (with_ca(&with_key), vec!["with_key.crt: line", "BEGIN PRIVATE KEY"]),
        (with_ca(cert), vec!["own.crt: entry 1 is not the certificate of an authority"]),
    ] {
        for (name, own) in
            [("stoker-worker", ["--simulate", "instant"]), ("stoker-router", ["--workers", "a:1"])]
        {
            let mut command = program(name);
            command.args(own).args(["--listen", "127.0.0.1:0"]).args(&flags);
            let (code, _, error) = output(command).await;
            assert_eq!(code, Some(2), "{flags:?}: {error}");
            let last = error.lines().last().unwrap();
            assert!(last.starts_with("error: "), "{error}");
            for part in &parts {
                assert!(last.contains(part), "{part:?} is not in {last}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_the_openai_api_are_served_over_tls() {
    let ours = Authority::new();
    let own = ours.issue("router", &["127.0.0.1"]);
    let ca = ours.ca();
    let backend = Process::start("stoker-worker", &["--simulate", "instant"]);
    let flags = ["--workers", &backend.address, "--http-listen", "127.0.0.1:0"];
    let metrics = ["--metrics-listen", "127.0.0.1:0", "--metrics-tls"];
    let router = start("stoker-router", &[strings(&flags), strings(&metrics), own.server()]);
    assert!(router.metrics.as_ref().unwrap().starts_with("https://"), "{:?}", router.metrics);
    let endpoint = format!("https://{}", router.started["http"].as_str().unwrap());
    // The load test is a client of HTTP/1.1, and `stoker` one of gRPC.
    let mut load = program("stoker-loadtest");
    load.args(["--target", "openai", "--endpoint", &endpoint, "--tls-ca", text(&ca)]);
    load.args(["--requests", "4", "--concurrency", "2"]);
    let (code, _, error) = output(load).await;
    assert_eq!(code, Some(0), "{error}");
    let endpoint = format!("https://{}", router.address);
    let generate = ["generate", "Once", "--endpoint", &endpoint, "--tls-ca", text(&ca)];
    let (code, story, error) = stoker(&generate).await;
    assert!(code == Some(0) && !story.is_empty(), "{error}");
    // The port of the metrics speaks no plain HTTP.
    let plain = router.metrics.as_ref().unwrap().replace("https", "http");
    let (head, body) = http(&plain, "GET", "/metrics", "").await;
    assert!(head.contains("400") && body.contains("https://"), "{head} {body}");
}

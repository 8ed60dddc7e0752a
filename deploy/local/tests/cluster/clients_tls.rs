//! Clients of other implementations over TLS and with an API key: the official ones of gRPC and of
//! OpenAI, and grpcurl.

use std::{
    path::Path,
    process::{Command, Output},
};

use stoker_shared::{client::Credentials, config::Secret};

use crate::{
    authority::{Authority, connect, replace, text, trusting},
    clients::{find, root},
    support::Process,
    tenants::{Keys, ready},
};

/// A router over TLS that wants keys, before a worker with the bundled model.
struct Secured {
    authority: Authority,
    key: String,
    router: Process,
    _worker: Process,
    _keys: Keys,
}

impl Secured {
    async fn start() -> Self {
        let (authority, keys) = (Authority::new(), Keys::new());
        let key = keys.create("acme").await;
        let own = authority.issue("router", &["127.0.0.1"]);
        let worker = Process::start("stoker-worker", &["--model", "storyteller"]);
        let path = keys.path();
        let tls = own.server();
        let tls: Vec<_> = tls.iter().map(String::as_str).collect();
        let own = ["--workers", &worker.address, "--api-keys", text(&path), "--http-listen"];
        let rest = ["127.0.0.1:0", "--model-alias", "gpt-4o-mini=storyteller"];
        let router = Process::start("stoker-router", &[&own[..], &rest, &tls].concat());
        let api_key = Some(Secret::from(key.clone()));
        let credentials = Credentials { api_key, ..trusting(&authority.ca(), None) };
        let client = connect(&router.address, &credentials).await.unwrap();
        ready(&client).await;
        Self { authority, key, router, _worker: worker, _keys: keys }
    }
}

async fn run(mut command: Command) -> (bool, String, String) {
    let run = move || command.current_dir(root()).output();
    let Output { status, stdout, stderr } =
        tokio::task::spawn_blocking(run).await.unwrap().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (status.success(), text(&stdout), text(&stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcurl_speaks_tls_with_a_key() {
    let Some(grpcurl) = find("STOKER_TEST_GRPCURL", "grpcurl", &["-version"]) else { return };
    let secured = Secured::start().await;
    let ca = secured.authority.ca();
    let call = |ca: &Path, key: &str| {
        let mut command = Command::new(&grpcurl);
        command.arg("-cacert").arg(ca).args(["-H", &format!("authorization: Bearer {key}")]);
        command.args(["-d", r#"{"prompt": "Once", "stopping": {"max_tokens": 3}}"#]);
        command.args([&secured.router.address, "stoker.v1.Inference/Generate"]);
        run(command)
    };
    let (succeeded, out, error) = call(&ca, &secured.key).await;
    assert!(succeeded && out.contains("\"completionTokens\": 3"), "{out}{error}");
    let (succeeded, _, error) = call(&ca, "sk-stoker-wrong").await;
    assert!(!succeeded && error.contains("Unauthenticated"), "{error}");
    let (succeeded, _, error) = call(&Authority::new().ca(), &secured.key).await;
    assert!(!succeeded && error.contains("certificate"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_for_python_speaks_tls_with_a_key() {
    let works = ["-c", "import grpc, grpc_tools, grpc_status"];
    let Some(python) = find("STOKER_TEST_PYTHON", "python3", &works) else { return };
    let secured = Secured::start().await;
    let (ca, other) = (secured.authority.ca(), Authority::new());
    let file = secured.authority.folder().join("api-key");
    let call = |script: &str, endpoint: String, ca: &Path, key: &str| {
        replace(&file, &format!("{key}\n"));
        let mut command = Command::new(&python);
        command.arg(format!("examples/python/{script}.py")).args(["--endpoint", &endpoint]);
        command.arg("--tls-ca").arg(ca).arg("--api-key-file").arg(&file);
        match script {
            "generate" => command.args(["Once upon a time", "--seed", "4", "--max-tokens", "9"]),
            _ => command.args(["--concurrency", "4", "--requests", "8", "--max-tokens", "9"]),
        };
        run(command)
    };
    let address = &secured.router.address;
    let https = || format!("https://{address}");
    let (succeeded, out, error) = call("generate", https(), &ca, &secured.key).await;
    assert!(succeeded && out.len() > 9, "{out}{error}");
    let (succeeded, out, error) = call("many", https(), &ca, &secured.key).await;
    assert!(succeeded && out.lines().count() == 8, "{out}{error}");
    for (endpoint, ca, key, expected) in [
        (https(), &ca, "sk-stoker-wrong", "UNAUTHENTICATED"),
        (https(), &other.ca(), &secured.key, "UNAVAILABLE"),
        (address.clone(), &ca, &secured.key, "need https://"),
    ] {
        let (succeeded, out, error) = call("generate", endpoint, ca, key).await;
        assert!(!succeeded && out.trim().is_empty(), "{out}");
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_openai_speaks_tls_with_a_key() {
    let Some(python) = find("STOKER_TEST_PYTHON", "python3", &["-c", "import openai"]) else {
        return;
    };
    let secured = Secured::start().await;
    let http = secured.router.started["http"].as_str().unwrap();
    let base = format!("https://{http}/v1");
    let run_python = |arguments: &[&str], key: &str| {
        let mut command = Command::new(&python);
        command.args(arguments).arg(&base);
        command.env("SSL_CERT_FILE", secured.authority.ca()).env("OPENAI_API_KEY", key);
        run(command)
    };
    let (succeeded, out, error) = run_python(&["deploy/openai/client.py"], &secured.key).await;
    assert!(succeeded && out.lines().count() >= 20, "{out}{error}");
    // One call, since each that fails is delayed.
    let list = "import sys, openai; openai.OpenAI(base_url=sys.argv[1]).models.list()";
    let (succeeded, _, error) = run_python(&["-c", list], "sk-stoker-wrong").await;
    assert!(!succeeded && error.contains("AuthenticationError"), "{error}");
}

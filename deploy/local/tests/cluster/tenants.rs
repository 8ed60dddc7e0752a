//! Tenants with API keys: who may do what, how much, and what keys leave behind.

use std::{path::PathBuf, time::Duration};

use futures::future::join_all;
use serde_json::{Value, json};
use stoker_proto::v1::{
    GetModelInfoRequest, ListModelsRequest, TokenizeRequest, generate_response::Event,
    tokenize_request,
};
use stoker_shared::{
    client::{CallError, Client, Credentials},
    config::Secret,
    deadline::Deadline,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::{Code, Request};
use tonic_types::StatusExt;

use crate::{
    authority::replace,
    support::{Process, TEST_TIMEOUT, http, output, program, request, stoker},
};

/// A file of keys, and the commands that change it.
pub struct Keys {
    folder: tempfile::TempDir,
}

impl Keys {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("keys.toml")
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.path()).unwrap()
    }

    /// Makes a key as an operator does, and returns it.
    pub async fn create(&self, tenant: &str) -> String {
        let file = self.path();
        let words = ["keys", "create", "--tenant", tenant, "--file", file.to_str().unwrap()];
        let (code, key, error) = stoker(&words).await;
        assert_eq!(code, Some(0), "{error}");
        assert!(!error.contains(key.trim()), "the key is on standard output alone");
        key.trim().to_owned()
    }

    /// Sets what a tenant may do.
    fn limit(&self, tenant: &str, policy: &str) {
        let section = format!("[tenants.{tenant}]\n");
        let text = self.text().replace(&section, &format!("{section}{policy}\n"));
        replace(&self.path(), &text);
    }

    fn router(&self, worker: &Process, flags: &[&str]) -> Process {
        let file = self.path();
        let own = ["--workers", &worker.address, "--api-keys", file.to_str().unwrap()];
        let listen = ["--metrics-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
        Process::start("stoker-router", &[&own[..], &listen, flags].concat())
    }
}

fn with_key(key: &str) -> Credentials {
    Credentials { api_key: Some(Secret::from(key.to_owned())), ..Credentials::default() }
}

async fn client(router: &Process, key: &str) -> Client {
    let address = router.address.parse().unwrap();
    Client::connect_with(&address, &with_key(key)).await.unwrap()
}

/// Waits until a worker is live, with any valid key.
pub async fn ready(client: &Client) {
    let watch = async {
        while client
            .control()
            .list_models(ListModelsRequest {})
            .await
            .unwrap()
            .into_inner()
            .models
            .is_empty()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TEST_TIMEOUT, watch).await.unwrap();
}

async fn generate(client: &Client, tokens: u32) -> Result<u32, CallError> {
    let mut response =
        client.generate(request("Once upon", 1, tokens), Deadline::after(TEST_TIMEOUT)).await?;
    let mut generated = 0;
    while let Some(event) = response.next().await? {
        if let Event::Token(delta) = event.kind {
            generated += delta.ids.len() as u32;
        }
    }
    Ok(generated)
}

/// Sends an HTTP request. Returns the status, the head in lower case, and the body.
pub async fn post(
    router: &Process,
    path: &str,
    key: Option<&str>,
    body: &Value,
) -> (u16, String, Value) {
    let host = router.started["http"].as_str().unwrap();
    let mut socket = TcpStream::connect(host).await.unwrap();
    let (body, key) = (body.to_string(), key.map(|key| format!("authorization: Bearer {key}\r\n")));
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{}content-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        key.unwrap_or_default(),
        body.len()
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    socket.read_to_string(&mut response).await.unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_ascii_lowercase(), serde_json::from_str(body).unwrap_or_default())
}

fn worker() -> Process {
    Process::start("stoker-worker", &["--simulate", "instant", "--model-name", "large"])
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_need_a_key_on_both_apis() {
    let keys = Keys::new();
    let key = keys.create("acme").await;
    assert_eq!(key.len(), "sk-stoker-".len() + 43);
    let worker = worker();
    let router = keys.router(&worker, &[]);
    let valid = client(&router, &key).await;
    ready(&valid).await;
    assert_eq!(generate(&valid, 5).await.unwrap(), 5);

    let anonymous =
        Client::connect_with(&router.address.parse().unwrap(), &with_key("")).await.unwrap();
    for (wrong, why) in
        [(&anonymous, "unknown"), (&client(&router, "sk-stoker-wrong").await, "unknown")]
    {
        let error = generate(wrong, 1).await.unwrap_err();
        assert_eq!(error.code(), Code::Unauthenticated, "{error}");
        assert!(
            error.message().contains(why) && error.message().contains("authorization: Bearer KEY")
        );
        let info = error.status().get_details_error_info().unwrap();
        assert_eq!((&*info.domain, &*info.reason), ("stoker", "UNAUTHENTICATED"));
        let mut control = wrong.control();
        let (mut second, mut third) = (wrong.control(), wrong.control());
        let (models, info, tokens) = tokio::join!(
            control.list_models(ListModelsRequest {}),
            second.get_model_info(GetModelInfoRequest::default()),
            third.tokenize(TokenizeRequest::default()),
        );
        let refused = [models.unwrap_err(), info.unwrap_err(), tokens.unwrap_err()];
        assert!(refused.iter().all(|status| status.code() == Code::Unauthenticated));
        // Probes have no keys.
        wrong.health().check(Request::new(Default::default())).await.unwrap();
    }

    let body = json!({ "prompt": "Once", "max_tokens": 3 });
    let (status, _, response) = post(&router, "/v1/completions", Some(&key), &body).await;
    assert_eq!(status, 200, "{response}");
    // At the same time, since each of them is delayed.
    let paths = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/nowhere"];
    let calls = [None, Some("sk-stoker-wrong")]
        .into_iter()
        .flat_map(|wrong| paths.map(|path| post(&router, path, wrong, &body)));
    for (status, head, response) in join_all(calls).await {
        assert_eq!(status, 401, "{response}");
        assert!(head.contains("www-authenticate: bearer"), "{head}");
        assert_eq!(response["error"]["code"], "invalid_api_key");
    }
    let url = format!("http://{}/x", router.started["http"].as_str().unwrap());
    assert!(http(&url, "GET", "/health", "").await.0.contains("200"));
    assert!(http(&url, "GET", "/v1/models", "").await.0.contains("401"));

    // Neither log, nor metrics, nor the command line of the process has the key.
    let (_, metrics) = http(router.metrics.as_ref().unwrap(), "GET", "/metrics", "").await;
    for part in [
        "stoker_router_rejections_total{reason=\"UNAUTHENTICATED\"}",
        "stoker_router_tenant_requests_total{tenant=\"acme\"} 2",
        "stoker_router_tenant_generated_tokens_total{tenant=\"acme\"} 8",
    ] {
        assert!(metrics.contains(part), "{part} is not in {metrics}");
    }
    assert!(!metrics.contains("sk-stoker"), "{metrics}");
    assert!(!keys.text().contains(&key) && keys.text().contains("sha256"));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_made_listed_and_revoked_while_a_router_runs() {
    let keys = Keys::new();
    let first = keys.create("acme").await;
    let router_worker = worker();
    let router = keys.router(&router_worker, &[]);
    let old = client(&router, &first).await;
    ready(&old).await;
    let second = keys.create("other").await;
    let until = async |key: &str, accepted: bool| {
        let client = client(&router, key).await;
        let poll = async { while generate(&client, 1).await.is_ok() != accepted {} };
        timeout(TEST_TIMEOUT, poll).await.unwrap();
    };
    until(&second, true).await;

    let file = keys.path();
    let file = file.to_str().unwrap();
    let (code, list, _) = stoker(&["keys", "list", "--file", file]).await;
    assert_eq!(code, Some(0));
    let rows: Vec<_> =
        list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(rows[0], ["ID", "TENANT", "CREATED", "NOTE"]);
    assert_eq!((rows[1][1], rows[2][1]), ("acme", "other"));
    // A response that runs is not ended by it.
    let deadline = Deadline::after(TEST_TIMEOUT);
    let mut running = old.generate(request("Once", 1, 200), deadline).await.unwrap();
    let (code, _, error) = stoker(&["keys", "revoke", rows[1][0], "--file", file]).await;
    assert_eq!(code, Some(0), "{error}");
    until(&first, false).await;
    while running.next().await.unwrap().is_some() {}
    until(&second, true).await;
    let (code, _, error) = stoker(&["keys", "revoke", rows[1][0], "--file", file]).await;
    assert!(code == Some(2) && error.contains("has no key with the id"), "{error}");

    // A wrong file: what was read before stays, and the log and a metric say so.
    let good = keys.text();
    for (bad, why) in [
        (format!("{good}{}", &good[good.find("[[keys]]").unwrap()..]), "occurs twice"),
        ("[tenants".to_owned(), "line 1"),
    ] {
        replace(&keys.path(), &bad);
        let failed = async {
            loop {
                let (_, metrics) =
                    http(router.metrics.as_ref().unwrap(), "GET", "/metrics", "").await;
                if metrics.contains("stoker_secret_last_reload_successful{secret=\"api_keys\"} 0") {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(TEST_TIMEOUT, failed).await.unwrap();
        until(&second, true).await;
        let mut refused = program("stoker-router");
        refused.args(["--workers", "a:1", "--listen", "127.0.0.1:0", "--api-keys", file]);
        let (code, _, error) = output(refused).await;
        assert!(code == Some(2) && error.contains("--api-keys") && error.contains(why), "{error}");
        replace(&keys.path(), &good);
        until(&second, true).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_have_their_models_tokens_and_streams() {
    let keys = Keys::new();
    let (limited, free) = (keys.create("limited").await, keys.create("free").await);
    keys.limit("limited", "models = ['lar*']\nmax-tokens = 50\ntokens-per-minute = 400");
    let (large, small) = (
        Process::start("stoker-worker", &["--simulate", "instant", "--model-name", "large"]),
        Process::start("stoker-worker", &["--simulate", "instant", "--model-name", "small"]),
    );
    let file = keys.path();
    let workers = format!("{},{}", large.address, small.address);
    let router = Process::start(
        "stoker-router",
        &[
            "--workers",
            &workers,
            "--api-keys",
            file.to_str().unwrap(),
            "--metrics-listen",
            "127.0.0.1:0",
            "--http-listen",
            "127.0.0.1:0",
            "--model-alias",
            "gpt=small",
        ],
    );
    let (limited_client, free_client) =
        (client(&router, &limited).await, client(&router, &free).await);
    let models = async |client: &Client| {
        let listed = client.control().list_models(ListModelsRequest {}).await.unwrap().into_inner();
        listed.models.into_iter().map(|served| served.model).collect::<Vec<_>>()
    };
    let both = async { while models(&free_client).await != ["large", "small"] {} };
    timeout(TEST_TIMEOUT, both).await.unwrap();
    assert_eq!(models(&limited_client).await, ["large"]);

    let of = async |client: &Client, model: &str, max_tokens: Option<u32>| {
        let mut request = request("Once upon", 1, 1);
        request.model = model.into();
        request.stopping.as_mut().unwrap().max_tokens = max_tokens;
        let mut response = client.generate(request, Deadline::after(TEST_TIMEOUT)).await?;
        let mut generated = 0;
        while let Some(event) = response.next().await? {
            if let Event::Token(delta) = event.kind {
                generated += delta.ids.len();
            }
        }
        Ok::<_, CallError>(generated)
    };
    for model in ["small", "gpt"] {
        assert!(of(&free_client, model, Some(1)).await.is_ok());
        let denied = of(&limited_client, model, Some(1)).await.unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied, "{denied}");
        assert!(denied.message().contains(model) && denied.message().contains("large"), "{denied}");
        let body = json!({ "model": model, "prompt": "Once", "max_tokens": 3 });
        let (status, _, response) = post(&router, "/v1/completions", Some(&limited), &body).await;
        assert_eq!((status, &response["error"]["code"]), (403, &json!("permission_denied")));
        let input = Some(tokenize_request::Input::Text("a".into()));
        let tokenize = TokenizeRequest { model: model.into(), input, ..TokenizeRequest::default() };
        let denied = limited_client.control().tokenize(tokenize).await.unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied);
    }
    // The only model that it may use is the one without a name.
    assert_eq!(of(&limited_client, "", Some(2)).await.unwrap(), 2);
    let unnamed = of(&free_client, "", Some(1)).await.unwrap_err();
    assert_eq!(unnamed.code(), Code::InvalidArgument, "{unnamed}");

    let too_many = of(&limited_client, "large", Some(51)).await.unwrap_err();
    assert_eq!(too_many.code(), Code::InvalidArgument);
    assert!(
        too_many
            .message()
            .contains("stopping.max_tokens: is 51; this tenant may request at most 50")
    );
    // Without a limit of its own, a request gets that of the tenant.
    assert_eq!(of(&limited_client, "large", None).await.unwrap(), 50);

    // 400 tokens a minute, charged by use: what was estimated and not used is returned.
    let mut used = 0;
    let limit = loop {
        match of(&limited_client, "large", Some(50)).await {
            Ok(generated) => used += generated,
            Err(error) => break error,
        }
        assert!(used < 2_000, "no limit");
    };
    assert_eq!(limit.code(), Code::ResourceExhausted, "{limit}");
    assert!(limit.message().contains("400 tokens a minute"), "{limit}");
    assert!((200..=400).contains(&used), "{used}");
    let details = limit.status().get_error_details();
    let delay = details.retry_info().unwrap().retry_delay.unwrap();
    assert!(delay > Duration::ZERO && delay < Duration::from_secs(60), "{delay:?}");
    assert_eq!(details.error_info().unwrap().reason, "RATE_LIMITED");
    let body = json!({ "model": "large", "prompt": "Once", "max_tokens": 50 });
    let (status, head, response) = post(&router, "/v1/completions", Some(&limited), &body).await;
    assert_eq!(
        (status, &response["error"]["code"]),
        (429, &json!("rate_limit_exceeded")),
        "{response}"
    );
    assert!(head.contains("retry-after: "), "{head}");
    // Another tenant notices nothing.
    assert_eq!(of(&free_client, "large", Some(50)).await.unwrap(), 50);
    let (_, metrics) = http(router.metrics.as_ref().unwrap(), "GET", "/metrics", "").await;
    let counted = "stoker_router_tenant_limited_total{tenant=\"limited\",limit=\"tokens\"} 2";
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_streams_of_a_tenant_are_limited() {
    let keys = Keys::new();
    let (one, other) = (keys.create("one").await, keys.create("other").await);
    keys.limit("one", "requests-per-minute = 12\nmax-concurrent-streams = 4");
    let step = r#"step = "20ms""#;
    let worker = Process::start("stoker-worker", &["--simulate", step]);
    let router = keys.router(&worker, &["--router-replicas", "2"]);
    let (one, other) = (client(&router, &one).await, client(&router, &other).await);
    ready(&one).await;
    let deadline = || Deadline::after(TEST_TIMEOUT);
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(one.generate(request("Once", 1, 300), deadline()).await.unwrap());
    }
    let refused = one.generate(request("Once", 1, 1), deadline()).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("2 streams of this tenant"), "{refused}");
    drop(open);
    let closed = async {
        loop {
            match generate(&one, 1).await {
                Ok(_) => break,
                Err(error) => assert!(error.message().contains("2 streams"), "{error}"),
            }
        }
    };
    timeout(TEST_TIMEOUT, closed).await.unwrap();
    // Half of the rate belongs to the other router.
    let mut served = 3;
    let limit = loop {
        match generate(&one, 1).await {
            Ok(_) => served += 1,
            Err(error) => break error,
        }
        assert!(served <= 12, "no limit");
    };
    assert!(limit.message().contains("6 requests a minute"), "{limit}");
    assert!((6..=8).contains(&served), "{served}");
    assert_eq!(generate(&other, 1).await.unwrap(), 1);
}

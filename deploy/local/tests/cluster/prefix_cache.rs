//! Cached prefixes are reused by later requests of the same tenant and salt, and by no others.

use stoker_proto::v1::{
    GenerateRequest, Load, TokenIds, Usage, generate_request::Input,
    inference_client::InferenceClient,
};
use tonic::{Request, transport::Channel};

use crate::support::{
    Completion, Process, control, inference, read, request, scrape, wait_for_load,
};

/// Tokens of the prompt: six whole blocks and a partial one.
const PROMPT: u32 = 100;

fn prompt_request() -> GenerateRequest {
    let ids = (3..3 + PROMPT).collect();
    GenerateRequest { input: Some(Input::TokenIds(TokenIds { ids })), ..request("", 7, 20) }
}

async fn complete_as(
    client: &mut InferenceClient<Channel>,
    tenant: &str,
    request: GenerateRequest,
) -> Completion {
    let mut request = Request::new(request);
    if !tenant.is_empty() {
        request.metadata_mut().insert("x-tenant", tenant.parse().unwrap());
    }
    read(client.generate(request).await.unwrap().into_inner(), || ()).await.unwrap()
}

fn cached(completion: &Completion) -> u32 {
    let Usage { prompt_tokens, cached_prompt_tokens, .. } = completion.finished.usage.unwrap();
    assert_eq!(prompt_tokens, PROMPT);
    cached_prompt_tokens
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_is_shared_within_a_tenant_and_salt_alone() {
    let worker = ["--model", "storyteller", "--metrics-listen", "127.0.0.1:0"];
    let worker = Process::start("stoker-worker", &worker);
    let router = ["--workers", &worker.address, "--tenant-header", "x-tenant"];
    let router = Process::start("stoker-router", &router);
    wait_for_load(&mut control(&router.address).await, |load| load.total_kv_blocks > 0).await;
    let mut client = inference(&router.address).await;

    let salted = || GenerateRequest { cache_salt: "pepper".into(), ..prompt_request() };
    let bypassing = || GenerateRequest { bypass_prefix_cache: true, ..prompt_request() };
    let mut texts = Vec::new();
    for (tenant, request, found) in [
        ("", prompt_request(), 0),
        ("", prompt_request(), 96),
        ("", bypassing(), 0),
        ("", salted(), 0),
        ("", salted(), 96),
        ("acme", prompt_request(), 0),
        ("acme", prompt_request(), 96),
        ("pepper", prompt_request(), 0),
        ("", prompt_request(), 96),
    ] {
        let what = format!("{tenant:?} {request:?}");
        let completion = complete_as(&mut client, tenant, request).await;
        assert_eq!(cached(&completion), found, "{what}");
        texts.push(completion.ids);
    }
    assert!(
        texts.windows(2).all(|pair| pair[0] == pair[1]),
        "all completions are the same: {texts:?}"
    );

    // Direct calls to the worker belong to the tenant "" too.
    let mut direct = inference(&worker.address).await;
    assert_eq!(cached(&complete_as(&mut direct, "", prompt_request()).await), 96);

    let all_free = |load: &Load| load.step > 0 && load.free_kv_blocks == load.total_kv_blocks;
    wait_for_load(&mut control(&worker.address).await, all_free).await;
    let metrics = scrape(&worker).await;
    let sample = |name: &str| {
        let mut found = metrics.iter().filter(|(key, _)| key.starts_with(name));
        *found.next().unwrap_or_else(|| panic!("{name} is not in {metrics:?}")).1
    };
    // Nine of the ten requests queried the cache, and five hit.
    assert_eq!(sample("stoker_worker_prefix_cache_queried_tokens_total"), 900.0);
    assert_eq!(sample("stoker_worker_prefix_cache_hit_tokens_total"), 480.0);
    // 119 tokens of each of four namespaces were computed.
    assert_eq!(sample("stoker_worker_kv_blocks_cached"), 28.0);
    assert_eq!(sample("stoker_worker_kv_cache_usage_ratio"), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_has_no_prefix_cache_with_prefix_cache_off() {
    let worker = ["--model", "storyteller", "--prefix-cache", "off"];
    let worker = Process::start("stoker-worker", &worker);
    let mut client = inference(&worker.address).await;
    for _ in 0..2 {
        assert_eq!(cached(&complete_as(&mut client, "", prompt_request()).await), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_hides_cached_tokens_with_hide_cached_tokens() {
    let any = ["--metrics-listen", "127.0.0.1:0"];
    let worker = ["--model", "storyteller"];
    let worker = Process::start("stoker-worker", &[&worker[..], &any].concat());
    let router = ["--workers", &worker.address, "--hide-cached-tokens"];
    let router = Process::start("stoker-router", &router);
    wait_for_load(&mut control(&router.address).await, |load| load.total_kv_blocks > 0).await;
    let mut client = inference(&router.address).await;
    for _ in 0..2 {
        assert_eq!(cached(&complete_as(&mut client, "", prompt_request()).await), 0);
    }
    // The cache was used all the same, as the worker reports.
    let mut direct = inference(&worker.address).await;
    assert_eq!(cached(&complete_as(&mut direct, "", prompt_request()).await), 96);
    let hits = "stoker_worker_prefix_cache_hit_tokens_total";
    let metrics = scrape(&worker).await;
    let hits = metrics.iter().find(|(name, _)| name.starts_with(hits)).unwrap();
    assert_eq!(*hits.1, 192.0);
}

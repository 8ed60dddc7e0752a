//! Tenants: who they are, and that nobody's many requests are in the way of others' few.

use stoker_proto::v1::GenerateRequest;
use stoker_router::RouterConfig;
use tonic::{Code, Request, metadata::MetadataValue};

use crate::support::{
    Cluster, ask, collect, soon, tokens,
    worker::{FakeWorker, Script},
};

fn config() -> RouterConfig {
    RouterConfig { tenant_header: Some("x-tenant".into()), ..Default::default() }
}

fn from(tenant: &'static str, request: GenerateRequest) -> Request<GenerateRequest> {
    let mut request = Request::new(request);
    request.metadata_mut().insert("x-tenant", MetadataValue::from_static(tenant));
    request
}

#[tokio::test]
async fn the_worker_is_told_who_asks() {
    let worker = FakeWorker::new("a");
    let cluster = Cluster::with(config(), &[&worker]).await;
    collect(cluster.generate(from("acme", ask(1))).await.unwrap()).await;
    collect(cluster.generate(ask(1)).await.unwrap()).await;
    let told = worker.requests().into_iter().map(|request| request.routing.unwrap().tenant);
    assert_eq!(told.collect::<Vec<_>>(), ["acme", ""]);
    let status = cluster.generate(from("a b", ask(1))).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("x-tenant: "), "{}", status.message());
}

#[tokio::test]
async fn a_tenants_requests_are_no_more_urgent_than_allowed() {
    let worker = FakeWorker::new("a");
    let rules = ["batch=500", "*=50"].map(|rule| rule.parse().unwrap());
    let config = RouterConfig { tenant_priority: rules.into(), ..config() };
    let cluster = Cluster::with(config, &[&worker]).await;
    let asks = |priority| GenerateRequest { priority, ..ask(1) };
    for (tenant, priority) in
        [("batch", Some(0)), ("batch", None), ("acme", Some(0)), ("acme", None)]
    {
        collect(cluster.generate(from(tenant, asks(priority))).await.unwrap()).await;
    }
    let told: Vec<_> = worker.requests().into_iter().map(|request| request.priority).collect();
    assert_eq!(told, [Some(500), Some(500), Some(50), None]);
    let status = cluster.generate(from("acme", asks(Some(1_001)))).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("priority: 1001"), "{}", status.message());
}

#[tokio::test]
async fn nobody_goes_first_whom_no_rule_allows_it() {
    let ops = vec!["ops=0".parse().unwrap()];
    for (config, allowed) in [
        (RouterConfig::default(), [Some(100), Some(100)]),
        (config(), [Some(100), Some(100)]),
        (RouterConfig { tenant_priority: ops, ..config() }, [Some(100), Some(0)]),
    ] {
        let worker = FakeWorker::new("a");
        let cluster = Cluster::with(config, &[&worker]).await;
        for tenant in ["acme", "ops"] {
            let asks = GenerateRequest { priority: Some(0), ..ask(1) };
            let (events, error) =
                collect(cluster.generate(from(tenant, asks)).await.unwrap()).await;
            assert!(error.is_none() && tokens(&events) == 1, "it is served: {error:?}");
        }
        let told: Vec<_> = worker.requests().into_iter().map(|request| request.priority).collect();
        assert_eq!(told, allowed);
    }
}

#[tokio::test]
async fn the_most_urgent_gets_the_next_place() {
    let worker = FakeWorker::new("a").always(Script::Stall(1));
    let tenant_priority = vec!["*=0".parse().unwrap()];
    let config = RouterConfig { max_concurrent_streams: 1, tenant_priority, ..config() };
    let cluster = Cluster::with(config, &[&worker]).await;
    let running = cluster.generate(ask(1)).await.unwrap();
    worker.script(|_| Script::Answer);
    let mut waiting = Vec::new();
    for priority in [None, Some(900), Some(99), Some(0)] {
        let mut client = cluster.client();
        let asks = GenerateRequest { priority, ..ask(2) };
        waiting.push(tokio::spawn(async move { client.generate(asks).await }));
        soon(async {
            while cluster.metric("stoker_router_requests_queued") < waiting.len() as u64 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    drop(running);
    for call in waiting {
        collect(soon(call).await.unwrap().unwrap().into_inner()).await;
    }
    let order: Vec<_> = worker.requests().into_iter().map(|request| request.priority).collect();
    assert_eq!(order[1..], [Some(0), Some(99), None, Some(900)]);
}

#[tokio::test]
async fn one_request_of_another_tenant_does_not_wait_for_all_that_came_first() {
    let worker = FakeWorker::new("a").always(Script::Stall(1));
    let config = RouterConfig { max_concurrent_streams: 1, tenant_queue_size: 5, ..config() };
    let cluster = Cluster::with(config, &[&worker]).await;
    let running = cluster.generate(from("many", ask(1))).await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..10 {
        let mut client = cluster.client();
        waiting.push(tokio::spawn(async move { client.generate(from("many", ask(2_000))).await }));
    }
    // Five wait, five are refused: the queue is as full as this tenant can make it.
    let mut refused = 0;
    while refused < 5 {
        let done: Vec<_> = waiting.extract_if(.., |call| call.is_finished()).collect();
        for call in done {
            assert_eq!(call.await.unwrap().unwrap_err().code(), Code::ResourceExhausted);
            refused += 1;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(cluster.metric("stoker_router_shed_total{limit=\"tenant_queue\"}"), 5);
    let mut client = cluster.client();
    let other = tokio::spawn(async move { client.generate(from("few", ask(3))).await });
    // It waits as well: from here on, one more of its own finds the queue as it is.
    worker.script(|_| Script::Answer);
    soon(async {
        while cluster.metric("stoker_router_requests_queued") < 6 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(running);
    let (events, _) = collect(soon(other).await.unwrap().unwrap().into_inner()).await;
    assert_eq!(tokens(&events), 3);
    for call in waiting {
        let (events, _) = collect(soon(call).await.unwrap().unwrap().into_inner()).await;
        assert_eq!(tokens(&events), 2_000);
    }
    let order: Vec<_> =
        worker.requests().into_iter().map(|request| request.routing.unwrap().tenant).collect();
    let place = order.iter().position(|tenant| tenant == "few").unwrap();
    assert!(place <= 2, "{order:?}");
}

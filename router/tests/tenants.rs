//! Tenants: identification, priority limits, and fairness.

use stoker_proto::v1::GenerateRequest;
use stoker_router::RouterConfig;
use tonic::{Code, Request, metadata::MetadataValue};

use crate::support::{
    Cluster, collect, request, soon, tokens,
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
async fn the_tenant_is_sent_to_the_worker() {
    let worker = FakeWorker::new("a");
    let cluster = Cluster::with(config(), &[&worker]).await;
    collect(cluster.generate(from("acme", request(1))).await.unwrap()).await;
    collect(cluster.generate(request(1)).await.unwrap()).await;
    let tenants = worker.requests().into_iter().map(|request| request.routing.unwrap().tenant);
    assert_eq!(tenants.collect::<Vec<_>>(), ["acme", ""]);
    let status = cluster.generate(from("a b", request(1))).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("x-tenant: "), "{}", status.message());
}

#[tokio::test]
async fn a_tenants_requests_are_no_more_urgent_than_allowed() {
    let worker = FakeWorker::new("a");
    let rules = ["batch=500", "*=50"].map(|rule| rule.parse().unwrap());
    let config = RouterConfig { tenant_priority: rules.into(), ..config() };
    let cluster = Cluster::with(config, &[&worker]).await;
    let with_priority = |priority| GenerateRequest { priority, ..request(1) };
    for (tenant, priority) in
        [("batch", Some(0)), ("batch", None), ("acme", Some(0)), ("acme", None)]
    {
        collect(cluster.generate(from(tenant, with_priority(priority))).await.unwrap()).await;
    }
    let priorities: Vec<_> =
        worker.requests().into_iter().map(|request| request.priority).collect();
    assert_eq!(priorities, [Some(500), Some(500), Some(50), None]);
    let status = cluster.generate(from("acme", with_priority(Some(1_001)))).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("priority: 1001"), "{}", status.message());
}

#[tokio::test]
async fn only_a_rule_allows_a_tenant_a_more_urgent_priority() {
    let ops = vec!["ops=0".parse().unwrap()];
    for (config, allowed) in [
        (RouterConfig::default(), [Some(100), Some(100)]),
        (config(), [Some(100), Some(100)]),
        (RouterConfig { tenant_priority: ops, ..config() }, [Some(100), Some(0)]),
    ] {
        let worker = FakeWorker::new("a");
        let cluster = Cluster::with(config, &[&worker]).await;
        for tenant in ["acme", "ops"] {
            let prioritized = GenerateRequest { priority: Some(0), ..request(1) };
            let (events, error) =
                collect(cluster.generate(from(tenant, prioritized)).await.unwrap()).await;
            assert!(error.is_none() && tokens(&events) == 1, "it is served: {error:?}");
        }
        let priorities: Vec<_> =
            worker.requests().into_iter().map(|request| request.priority).collect();
        assert_eq!(priorities, allowed);
    }
}

#[tokio::test]
async fn the_most_urgent_request_gets_the_next_slot() {
    let worker = FakeWorker::new("a").always(Script::Stall(1));
    let tenant_priority = vec!["*=0".parse().unwrap()];
    let config = RouterConfig { max_concurrent_streams: 1, tenant_priority, ..config() };
    let cluster = Cluster::with(config, &[&worker]).await;
    let running = cluster.generate(request(1)).await.unwrap();
    worker.script(|_| Script::Complete);
    let mut waiting = Vec::new();
    for priority in [None, Some(900), Some(99), Some(0)] {
        let mut client = cluster.client();
        let prioritized = GenerateRequest { priority, ..request(2) };
        waiting.push(tokio::spawn(async move { client.generate(prioritized).await }));
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
async fn a_request_of_another_tenant_does_not_wait_for_all_earlier_ones() {
    let worker = FakeWorker::new("a").always(Script::Stall(1));
    let config = RouterConfig { max_concurrent_streams: 1, tenant_queue_size: 5, ..config() };
    let cluster = Cluster::with(config, &[&worker]).await;
    let running = cluster.generate(from("many", request(1))).await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..10 {
        let mut client = cluster.client();
        waiting
            .push(tokio::spawn(async move { client.generate(from("many", request(2_000))).await }));
    }
    // Five wait, and five are refused: the tenant has reached its queue limit.
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
    let other = tokio::spawn(async move { client.generate(from("few", request(3))).await });
    // The request of the other tenant is queued too.
    worker.script(|_| Script::Complete);
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
    let position = order.iter().position(|tenant| tenant == "few").unwrap();
    assert!(position <= 2, "{order:?}");
}

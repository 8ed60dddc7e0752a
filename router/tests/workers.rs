//! Workers that join, leave, drain and return.

use std::collections::BTreeSet;

use futures::{StreamExt, channel::mpsc, stream};
use stoker_proto::v1::{
    DetokenizeRequest, GenerateRequest, GetModelInfoRequest, Load, TokenizeRequest,
    WatchLoadRequest,
};
use stoker_router::{RouterConfig, WorkerView};
use stoker_shared::{
    ServiceError,
    discovery::{Change, Registry, WorkerId},
};
use tonic::Code;

use crate::support::{
    Cluster, accepted, candidate, collect, request, soon, tokens,
    worker::{FakeWorker, Script},
};

#[tokio::test]
async fn without_a_worker_the_error_has_the_reason() {
    let registry = Registry::default();
    let cluster = Cluster::following(RouterConfig::default(), registry.watch()).await;
    let status = cluster.generate(request(1)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.message(), "no worker is ready; none is known");
    let info = tonic_types::StatusExt::get_details_retry_info(&status).unwrap();
    assert!(info.retry_delay.is_some());

    let gone = FakeWorker::new("gone");
    let _registration = registry.register(candidate("gone", &gone));
    drop(gone);
    soon(async {
        loop {
            let status = cluster.generate(request(1)).await.unwrap_err();
            if status.message().contains("gone: Connection refused") {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_restarted_worker_is_used_again() {
    let worker = FakeWorker::new("first");
    let address = worker.address;
    let cluster = Cluster::of(&[&worker]).await;
    drop(worker);
    cluster.until(|workers| !workers[0].live).await;
    let worker = FakeWorker::at(address, "second", "story");
    soon(cluster.router.wait_ready(1)).await;
    let (events, _) = collect(cluster.generate(request(2)).await.unwrap()).await;
    assert_eq!(accepted(&events).worker, "second");
    assert_eq!(worker.requests().len(), 1);
}

#[tokio::test]
async fn a_draining_worker_gets_no_new_requests_and_finishes_running_ones() {
    let (a, b) = (FakeWorker::new("a"), FakeWorker::new("b"));
    let cluster = Cluster::of(&[&a, &b]).await;
    a.script(|_| Script::Stall(1));
    let mut running = loop {
        let stream = cluster.generate(request(2)).await.unwrap();
        if !a.requests().is_empty() {
            break stream;
        }
    };
    soon(running.next()).await.unwrap().unwrap();
    a.set_load(Load { draining: true, ..Default::default() });
    cluster.until(|workers| workers.iter().filter(|w| w.live).count() == 1).await;
    let before = a.requests().len();
    for _ in 0..20 {
        collect(cluster.generate(request(2)).await.unwrap()).await;
    }
    assert_eq!(a.requests().len(), before);
    soon(running.next()).await.unwrap().unwrap();
    a.open(1).await;
}

#[tokio::test]
async fn a_withdrawn_worker_serves_until_it_is_lost_and_is_then_removed() {
    let registry = Registry::default();
    let (remaining, worker) = (FakeWorker::new("kept"), FakeWorker::new("a"));
    let _remaining = registry.register(candidate("kept", &remaining));
    let registration = registry.register(candidate("a", &worker));
    let cluster = Cluster::following(RouterConfig::default(), registry.watch()).await;
    soon(cluster.router.wait_ready(2)).await;
    drop(registration);
    // The marker is announced after the withdrawal: once it is ready, the withdrawal has been
    // processed.
    let marker = FakeWorker::new("marker");
    let _marker = registry.register(candidate("marker", &marker));
    soon(cluster.router.wait_ready(3)).await;
    let before = worker.requests().len();
    for _ in 0..100 {
        assert_eq!(tokens(&collect(cluster.generate(request(1)).await.unwrap()).await.0), 1);
    }
    assert!(worker.requests().len() > before, "it still gets requests");
    drop(worker);
    let names = |workers: &[WorkerView]| {
        workers.iter().map(|worker| worker.id.to_string()).collect::<BTreeSet<_>>()
    };
    let others = BTreeSet::from(["kept", "marker"].map(String::from));
    cluster.until(|workers| names(workers) == others).await;
    // A worker that is not withdrawn is never removed.
    drop(remaining);
    cluster.until(|workers| workers.iter().any(|w| w.id.as_str() == "kept" && !w.live)).await;
}

#[tokio::test]
async fn a_worker_that_is_announced_again_keeps_its_connection() {
    let (mut source, changes) = mpsc::channel(100);
    let (worker, marker) = (FakeWorker::new("a"), FakeWorker::new("marker"));
    let mut send = |change| source.try_send(change).unwrap();
    send(Change::Insert(candidate("a", &worker)));
    let cluster = Cluster::following(RouterConfig::default(), changes.boxed()).await;
    soon(cluster.router.wait_ready(1)).await;
    collect(cluster.generate(request(1)).await.unwrap()).await;
    for _ in 0..10 {
        send(Change::Insert(candidate("a", &worker)));
        send(Change::Remove(WorkerId::new("a")));
        send(Change::Insert(candidate("a", &worker)));
    }
    // Announced after all of these changes.
    send(Change::Insert(candidate("marker", &marker)));
    soon(cluster.router.wait_ready(2)).await;
    for _ in 0..100 {
        collect(cluster.generate(request(1)).await.unwrap()).await;
    }
    assert!(worker.requests().len() > 1);
    assert_eq!(worker.connections(), 1);
}

#[tokio::test]
async fn a_withdrawn_address_reused_by_another_worker_is_removed() {
    let registry = Registry::default();
    let gone = FakeWorker::new("a");
    let address = gone.address;
    let registration = registry.register(candidate("a", &gone));
    let cluster = Cluster::following(RouterConfig::default(), registry.watch()).await;
    soon(cluster.router.wait_ready(1)).await;
    drop(gone);
    cluster.until(|workers| !workers[0].live).await;
    let _other = FakeWorker::at(address, "stranger", "story");
    soon(cluster.router.wait_ready(1)).await;
    drop(registration);
    cluster.until(<[_]>::is_empty).await;
}

#[tokio::test]
async fn the_error_names_a_failure_of_the_discovery_source() {
    let source_error =
        Change::SourceError(Some("etcd http://a:1 cannot be reached: refused".into()));
    let changes = stream::iter([source_error]).chain(stream::pending()).boxed();
    let cluster = Cluster::following(RouterConfig::default(), changes).await;
    let error_names_source = async {
        loop {
            let status = cluster.generate(request(1)).await.unwrap_err();
            assert_eq!(status.code(), Code::Unavailable);
            if status
                .message()
                .ends_with("none is known; etcd http://a:1 cannot be reached: refused")
            {
                break;
            }
        }
    };
    soon(error_names_source).await;
}

#[tokio::test]
async fn a_worker_may_change_its_address() {
    let registry = Registry::default();
    let (old, new) = (FakeWorker::new("old"), FakeWorker::new("new"));
    let _first = registry.register(candidate("w", &old));
    let cluster = Cluster::following(RouterConfig::default(), registry.watch()).await;
    soon(cluster.router.wait_ready(1)).await;
    let _second = registry.register(candidate("w", &new));
    soon(async {
        loop {
            if let Ok(stream) = cluster.generate(request(1)).await
                && accepted(&collect(stream).await.0).worker == "new"
            {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn control_calls_return_the_cluster_as_one_worker() {
    let (a, b) = (FakeWorker::new("a"), FakeWorker::new("b"));
    let cluster = Cluster::of(&[&a, &b]).await;
    let mut control = cluster.control();
    let info = control.get_model_info(GetModelInfoRequest::default()).await;
    let info = info.unwrap().into_inner();
    assert_eq!((info.model.as_str(), info.digest.as_str()), ("story", "d1"));
    assert_eq!(info.worker, "");
    assert_eq!(info.capacity.unwrap().max_num_seqs, 16);

    let loads = control.watch_load(WatchLoadRequest::default()).await;
    let mut loads = loads.unwrap().into_inner();
    let first = soon(loads.next()).await.unwrap().unwrap();
    assert_eq!(first.free_kv_blocks, 20);
    a.set_load(Load { free_kv_blocks: 3, running: 2, ..Default::default() });
    let changed = async {
        loop {
            let load = loads.next().await.unwrap().unwrap();
            if load.running == 2 {
                break load;
            }
        }
    };
    assert_eq!(soon(changed).await.free_kv_blocks, 13);

    let ids = control.tokenize(TokenizeRequest::default()).await.unwrap();
    assert_eq!(ids.into_inner().ids, [1, 2, 3]);
    let text = control.detokenize(DetokenizeRequest { ids: vec![5], ..Default::default() }).await;
    assert_eq!(text.unwrap().into_inner().text, "[5]");
    let unknown = TokenizeRequest { model: "unknown".into(), ..Default::default() };
    assert_eq!(control.tokenize(unknown).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(tokens(&collect(cluster.generate(request(1)).await.unwrap()).await.0), 1);
}

#[tokio::test]
async fn a_worker_that_serves_another_model_than_before_is_no_client_error() {
    let (good, other) = (FakeWorker::new("good"), FakeWorker::new("stranger"));
    let unknown = ServiceError::UnknownModel { model: "story".into(), available: vec![] };
    let field = "routing.resume.digest";
    for error in [unknown, ServiceError::invalid(field, "is not mine")] {
        other.script(move |_| Script::Refuse(error.clone()));
        let cluster = Cluster::of(&[&good, &other]).await;
        let before = other.requests().len();
        for _ in 0..100 {
            let (_, error) = collect(cluster.generate(request(2)).await.unwrap()).await;
            assert!(error.is_none(), "{error:?}");
        }
        assert!(other.requests().len() > before, "it is selected as well");
    }
}

#[tokio::test]
async fn a_request_too_long_for_one_worker_is_retried_on_one_with_a_longer_context() {
    let long = |_: &GenerateRequest| {
        Script::Refuse(ServiceError::invalid("prompt", "700 tokens; at most 511 leave room"))
    };
    let (short, wide) =
        (FakeWorker::of_context("short", 512), FakeWorker::of_context("wide", 1_024));
    short.script(long);
    let cluster = Cluster::of(&[&short, &wide]).await;
    for _ in 0..50 {
        let (_, error) = collect(cluster.generate(request(2)).await.unwrap()).await;
        assert!(error.is_none(), "{error:?}");
    }
    assert!(!short.requests().is_empty(), "it is selected as well");
    // If no context is longer, it is a client error and not retried.
    wide.script(long);
    let before = wide.requests().len() + short.requests().len();
    let status = cluster.generate(request(2)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(wide.requests().len() + short.requests().len() <= before + 2);
}

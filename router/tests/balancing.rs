//! Load balancing, release of reservations, and flow control.

use futures::{StreamExt, future::join_all};
use stoker_proto::v1::{GenerateRequest, Sampling};
use stoker_shared::ServiceError;

use crate::support::{
    Cluster, collect, request, soon, tokens,
    worker::{FakeWorker, Script},
};

/// Upper bound of the tokens in flight to one client that does not read: all flow-control windows
/// and buffers on the way, and what the router reads ahead for a slow client.
const MAX_UNREAD: usize = 15_000;

#[tokio::test]
async fn the_worker_with_less_work_is_preferred() {
    let (a, b) = (FakeWorker::new("a"), FakeWorker::new("b"));
    for worker in [&a, &b] {
        worker.script(|_| Script::Stall(1));
    }
    let cluster = Cluster::of(&[&a, &b]).await;
    // One long response, then short ones: together they are less work, so they run on the other
    // worker.
    let mut streams = vec![cluster.generate(request(100_000)).await.unwrap()];
    let (long, short) = if a.requests().is_empty() { (&b, &a) } else { (&a, &b) };
    for _ in 0..20 {
        streams.push(cluster.generate(request(100)).await.unwrap());
    }
    assert_eq!((long.requests().len(), short.requests().len()), (1, 20));
}

#[tokio::test]
async fn every_choice_counts_as_work() {
    let worker = FakeWorker::new("a").always(Script::Stall(1));
    let cluster = Cluster::of(&[&worker]).await;
    let sampling = Some(Sampling { num_sequences: Some(3), ..Default::default() });
    let three = GenerateRequest { sampling, ..request(100) };
    let stream = cluster.generate(three).await.unwrap();
    // Each choice has generated one of its 100 tokens, so the prompt is prefilled.
    let mut stream = stream.take(4);
    while let Some(event) = soon(stream.next()).await {
        event.unwrap();
    }
    cluster.until(|w| w[0].outstanding_tokens == 3 * 99 && w[0].streams == 1).await;
    drop(stream);
    cluster.until(|w| w[0].outstanding_tokens == 0 && w[0].streams == 0).await;
}

#[tokio::test]
async fn concurrent_calls_are_spread() {
    let workers = ["a", "b", "c", "d"].map(|n| FakeWorker::new(n).always(Script::Stall(1)));
    let cluster = Cluster::of(&workers.each_ref()).await;
    let calls = (0..80).map(|_| cluster.generate(request(100)));
    let streams = join_all(calls).await;
    assert!(streams.iter().all(Result::is_ok));
    for worker in &workers {
        let count = worker.requests().len();
        assert!((14..=26).contains(&count), "{count} of 80 on one of four");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_and_cancellations_leave_nothing_reserved() {
    const STREAMS: usize = 500;
    let workers = ["a", "b", "c"].map(FakeWorker::new);
    for worker in &workers {
        worker.script(|_| match rand::random_range(0..10) {
            0 => Script::Refuse(ServiceError::unavailable("draining")),
            1 => Script::Refuse(ServiceError::Internal("NaN logits".into())),
            2 => Script::Fail(3, ServiceError::unavailable("lost")),
            3 => Script::Truncate(2),
            4 => Script::Stall(5),
            5 => Script::Hang,
            _ => Script::Complete,
        });
    }
    let cluster = Cluster::of(&workers.each_ref()).await;
    let calls = (0..STREAMS).map(|_| {
        let mut client = cluster.client();
        tokio::spawn(async move {
            let millis = rand::random_range(0..40);
            let call = client.generate(request(20));
            // Some clients cancel before the worker accepts, some in the middle, some never.
            let limit = std::time::Duration::from_millis(millis * 5);
            let Ok(Ok(response)) = tokio::time::timeout(limit, call).await else {
                return;
            };
            let mut events = response.into_inner();
            let limit_events = rand::random_range(1..30);
            for _ in 0..limit_events {
                match tokio::time::timeout(limit, events.next()).await {
                    Ok(Some(Ok(_))) => {}
                    _ => break,
                }
            }
        })
    });
    for done in soon(join_all(calls)).await {
        done.unwrap();
    }
    for worker in &workers {
        worker.open(0).await;
    }
    cluster
        .until(|workers| {
            workers.iter().all(|w| w.live && w.outstanding_tokens == 0 && w.streams == 0)
        })
        .await;
    assert!(workers.iter().all(|w| w.connections() == 1), "a cancelled stream cost a connection");
    let reached: usize = workers.iter().map(|w| w.requests().len()).sum();
    assert!(reached > 0, "no request reached a worker");
    // The cluster still serves requests.
    for worker in &workers {
        worker.script(|_| Script::Complete);
    }
    cluster.generate(request(3)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_streams_do_not_close_the_connection() {
    let worker = FakeWorker::new("a").always(Script::Flood);
    let cluster = Cluster::of(&[&worker]).await;
    // h2 forgets old resets and counts frames that still arrive for them. By default, it closes a
    // connection after 1,024 of these.
    for _ in 0..10 {
        let readers = (0..100).map(|_| async {
            let mut stream = cluster.generate(request(1)).await.unwrap();
            for _ in 0..5 {
                soon(stream.next()).await.unwrap().unwrap();
            }
        });
        join_all(readers).await;
    }
    worker.open(0).await;
    assert_eq!(worker.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn immediate_cancellations_do_not_close_the_connection() {
    let worker = FakeWorker::new("a").always(Script::Stall(1));
    let cluster = Cluster::of(&[&worker]).await;
    for _ in 0..50 {
        let calls: Vec<_> = (0..100)
            .map(|_| {
                let mut client = cluster.client();
                tokio::spawn(async move { client.generate(request(1)).await })
            })
            .collect();
        tokio::task::yield_now().await;
        for call in &calls {
            call.abort();
        }
        join_all(calls).await;
    }
    worker.open(0).await;
    cluster.generate(request(1)).await.unwrap();
    assert_eq!(worker.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_slows_its_own_stream_only() {
    const SLOW: usize = 10;
    const TOKENS: u32 = 20_000;
    let worker = FakeWorker::new("a");
    worker.script(|request| match request.stopping.as_ref().and_then(|s| s.max_tokens) {
        Some(1) => Script::Flood,
        _ => Script::Complete,
    });
    let cluster = Cluster::of(&[&worker]).await;
    let mut client = cluster.with_small_window().await;
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        let mut stream = client.generate(request(1)).await.unwrap().into_inner();
        soon(stream.next()).await.unwrap().unwrap();
        slow.push(stream);
    }
    // Other clients get long responses on the same two connections, until the floods are blocked.
    let mut before = 0;
    let held = loop {
        let beside = client.generate(request(TOKENS)).await.unwrap().into_inner();
        let (events, error) = collect(beside).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(tokens(&events), TOKENS as usize);
        let made = worker.flood();
        if made == before {
            break made / SLOW;
        }
        before = made;
    };
    // Unread tokens fill only the flow-control windows on the way.
    assert!(
        held < MAX_UNREAD,
        "{held} tokens of each stream are held for a client that does not read"
    );
    for stream in &mut slow {
        for _ in 0..100 {
            soon(stream.next()).await.unwrap().unwrap();
        }
    }
    assert_eq!(worker.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_do_not_close_the_connection() {
    const SLOW: usize = 400;
    let worker = FakeWorker::new("a").always(Script::Flood);
    let cluster = Cluster::of(&[&worker]).await;
    let mut client = cluster.with_small_window().await;
    let mut streams = Vec::new();
    for _ in 0..SLOW {
        streams.push(client.generate(request(1)).await.unwrap().into_inner());
    }
    // h2 counts small unread frames per connection, and by default closes it after too many.
    worker.flooded(SLOW * 800).await;
    for stream in &mut streams {
        for _ in 0..100 {
            soon(stream.next()).await.unwrap().unwrap();
        }
    }
    assert_eq!(worker.connections(), 1);
}

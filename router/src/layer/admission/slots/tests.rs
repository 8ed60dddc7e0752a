#![allow(clippy::unwrap_used, reason = "tests")]

use std::task::Poll;

use futures::{FutureExt, future::join_all};

use super::*;

fn slots(max_concurrent_streams: u32, queue_size: u32) -> Slots {
    let config = RouterConfig {
        max_concurrent_streams,
        queue_size,
        tenant_header: Some("x-tenant".into()),
        tenant_queue_size: queue_size.div_ceil(2),
        queue_timeout: Duration::from_secs(10),
        ..Default::default()
    };
    Slots::new(&config, Metrics::default())
}

fn named(tenant: &str) -> Arc<str> {
    tenant.into()
}

async fn acquire(slots: &Slots, tenant: &str) -> Result<Slot, ServiceError> {
    acquire_by(slots, tenant, Deadline::NEVER).await
}

async fn acquire_by(slots: &Slots, tenant: &str, deadline: Deadline) -> Result<Slot, ServiceError> {
    slots
        .acquire(SlotRequest { priority: 100, tenant: &named(tenant), tokens: 100 }, deadline)
        .await
}

fn what(error: Option<ServiceError>) -> String {
    match error {
        Some(ServiceError::Overloaded { what, .. }) => what,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_fills_only_its_share_of_the_queue() {
    let slots = slots(1, 4);
    let _running = acquire(&slots, "a").await.unwrap();
    let mut waiting: Vec<_> = (0..2).map(|_| acquire(&slots, "a").boxed()).collect();
    for waiter in &mut waiting {
        assert!(futures::poll!(waiter).is_pending());
    }
    let refused = what(acquire(&slots, "a").await.err());
    let limit = "2 requests of this tenant are waiting (--tenant-queue-size)";
    assert!(refused.contains(limit), "{refused}");
    waiting.extend((0..2).map(|_| acquire(&slots, "b").boxed()));
    for waiter in &mut waiting[2..] {
        assert!(futures::poll!(waiter).is_pending());
    }
    let refused = what(acquire(&slots, "c").await.err());
    assert!(refused.contains("4 requests are waiting (--queue-size)"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_slot_granted_to_a_leaving_call_goes_to_the_next_one() {
    let slots = slots(1, 4);
    let running = acquire(&slots, "a").await.unwrap();
    let mut leaves = acquire(&slots, "a").boxed();
    let mut stays = acquire(&slots, "a").boxed();
    assert!(futures::poll!(&mut leaves).is_pending());
    assert!(futures::poll!(&mut stays).is_pending());
    drop(running);
    // Its slot is granted, but the future is dropped without being polled.
    drop(leaves);
    let slot = stays.await.unwrap();
    assert_eq!(slots.free_and_waiting(), (0, 0));
    drop(slot);
    assert_eq!(slots.free_and_waiting(), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_estimated_wait_is_too_long_is_refused_immediately() {
    let slots = slots(1, 100);
    let mut running = acquire(&slots, "a").await.unwrap();
    let mut waiting: Vec<_> = (0..30).map(|_| acquire(&slots, "a").boxed()).collect();
    for waiter in &mut waiting {
        assert!(futures::poll!(waiter).is_pending());
    }
    for _ in 0..10 {
        tokio::time::advance(Duration::from_millis(500)).await;
        drop(running);
        running = waiting.remove(0).await.unwrap();
    }
    // Twenty calls wait, half a second each.
    let start = Instant::now();
    let hurried = Deadline::after(Duration::from_secs(4));
    let refused = acquire_by(&slots, "a", hurried).await.err();
    let Some(ServiceError::Overloaded { what, retry_after }) = refused else {
        panic!("{refused:?}")
    };
    assert!(what.contains("is 10500 ms") && what.contains("for 4000 ms"), "{what}");
    assert!(retry_after >= Duration::from_secs(5), "{retry_after:?}");
    assert_eq!(start.elapsed(), Duration::ZERO);
    // A call of another tenant is second in the queue, so it may wait.
    let mut other = acquire_by(&slots, "b", hurried).boxed();
    assert!(futures::poll!(&mut other).is_pending());
    // A more urgent call of the same tenant is first in the queue.
    let (tenant, priority) = (named("a"), 0);
    let urgent = SlotRequest { priority, tenant: &tenant, tokens: 100 };
    let mut urgent = slots.acquire(urgent, hurried).boxed();
    assert!(futures::poll!(&mut urgent).is_pending());
    drop(running);
    assert!(urgent.await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_slot_leaks_when_many_calls_are_cancelled() {
    let slots = slots(3, 64);
    let calls = (0..2_000_u32).map(|i| {
        let slots = slots.clone();
        tokio::spawn(async move {
            let tenant = (i % 5).to_string();
            let mut taking = acquire(&slots, &tenant).boxed();
            // Dropped after a random time: in the queue, with a slot, or in between.
            let mut slot = None;
            for _ in 0..rand::random_range(0..20) {
                if slot.is_none()
                    && let Poll::Ready(taken) = futures::poll!(&mut taking)
                {
                    slot = Some(taken);
                }
                tokio::task::yield_now().await;
            }
        })
    });
    for done in join_all(calls).await {
        done.unwrap();
    }
    assert_eq!(slots.free_and_waiting(), (3, 0));
    let held = join_all((0..3).map(|_| acquire(&slots, "a"))).await;
    assert!(held.iter().all(Result::is_ok));
}

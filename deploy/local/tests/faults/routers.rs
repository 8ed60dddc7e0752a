//! Routers that are killed. Nothing but a client can go on then; workers must not work for nobody.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::{
    fleet::{
        Fleet, STEADY, addresses, at_rest, in_the_middle, is_at_rest, knows, nothing_in_flight,
        router,
    },
    row::Row,
    support::{control, load_becomes},
};

const STREAMS: &str = "--requests 100 --concurrency 100 --synthetic 16:120";
/// Workers have stopped what nobody waits for after this.
const ORPHANS: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn the_router_is_killed() {
    let row = Row::new("the router is killed", STREAMS).await;
    let Fleet { workers, router } = Fleet::simulated(2, STEADY).await;
    let load = row.start(&router.address);
    in_the_middle(&workers[0], 20, 20).await;
    // Watched before it happens, so that nothing is missed.
    let mut watched = [control(&workers[0].address).await, control(&workers[1].address).await];
    drop(router);
    let killed = Instant::now();
    for worker in &mut watched {
        timeout(ORPHANS, load_becomes(worker, is_at_rest)).await.unwrap();
    }
    let took = killed.elapsed();
    let seen = load.end().await;
    seen.nobody_got_other_text();
    seen.failures_are(&["UNAVAILABLE"]);
    assert_eq!(seen.failed(), 100, "{:#}", seen.json);
    let note = format!("UNAVAILABLE; workers were free after {} ms", took.as_millis());
    row.tell(&seen, None, &note);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_router_of_two_is_killed() {
    let row = Row::new("one router of two is killed", STREAMS).await;
    let Fleet { workers, router: doomed } = Fleet::simulated(2, STEADY).await;
    let other = router(&addresses(&workers), &[]);
    knows(&other, &workers).await;
    let (lost, load) = (row.start(&doomed.address), row.start(&other.address));
    let seen = load
        .during(async {
            // More than those of one router.
            in_the_middle(&workers[0], 70, 20).await;
            drop(doomed);
        })
        .await;
    let lost = lost.end().await;
    lost.nobody_got_other_text();
    lost.failures_are(&["UNAVAILABLE"]);
    assert_eq!(lost.failed(), 100, "{:#}", lost.json);
    seen.nobody_noticed();
    for worker in &workers {
        at_rest(worker).await;
    }
    nothing_in_flight(&other).await;
    row.tell(&seen, None, "clients of the other one; those of the killed one get UNAVAILABLE");
}

//! A worker on the other side of a network that loses every packet: no reset, no error, no word. Where network
//! namespaces may be made, which takes root.

use std::time::Duration;

use crate::{
    fleet::{Fleet, ROOM, STEADY, addresses, in_the_middle, router, simulated},
    namespace::{Cut, Namespace},
    row::{Row, Seen},
};

const STREAMS: &str = "--requests 100 --concurrency 100 --synthetic 16:120";
/// The stall budget's default, and what resuming may take.
const STALL: Duration = Duration::from_millis(3_100);

/// What clients see when the first worker of two is cut off while streams run there. After it the network
/// heals; nobody is started again, and everything has to be as it was.
async fn partitioned(row: &Row, cut: Cut) -> Option<Seen> {
    let namespace = Namespace::new()?;
    let far = namespace.worker(&[&["--simulate", STEADY][..], &ROOM].concat());
    let workers = vec![far, simulated(STEADY, &[])];
    let router = router(&addresses(&workers), &[]);
    let fleet = Fleet { workers, router };
    fleet.complete().await;
    let load = row.start(&fleet.router.address);
    let seen = load
        .during(async {
            in_the_middle(&fleet.workers[0], 20, 20).await;
            namespace.cut(cut);
        })
        .await;
    namespace.heal();
    fleet.complete().await;
    fleet.at_rest().await;
    // As good as new: it is used again.
    let healed = row.start(&fleet.router.address).end().await;
    healed.nobody_noticed();
    assert_eq!(healed.json["workers"].as_object().unwrap().len(), 2, "{:#}", healed.json);
    fleet.at_rest().await;
    Some(seen)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn packets_are_lost_both_ways() {
    let row = Row::new("a partition, both ways", STREAMS).await;
    let Some(seen) = partitioned(&row, Cut::Both).await else { return };
    seen.nobody_noticed();
    assert!(seen.resumed() >= 20, "{:#}", seen.json);
    row.tell(&seen, Some(STALL), "packets are lost; heals without a restart");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn packets_from_the_worker_are_lost() {
    let row = Row::new("a partition, from the worker", STREAMS).await;
    let Some(seen) = partitioned(&row, Cut::From).await else { return };
    seen.nobody_noticed();
    assert!(seen.resumed() >= 20, "{:#}", seen.json);
    row.tell(&seen, Some(STALL), "packets are lost that way; heals without a restart");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn packets_to_the_worker_are_lost() {
    let row = Row::new("a partition, to the worker", STREAMS).await;
    let Some(seen) = partitioned(&row, Cut::To).await else { return };
    seen.nobody_noticed();
    // Acknowledgements are lost too: its buffers fill up, and then nothing comes any more.
    row.tell(&seen, None, "packets are lost that way; heals without a restart");
}

//! Lookups with a resolver that gives what a test sets, in paused time.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Mutex;

use futures::FutureExt;

use super::*;

type Found = Arc<Mutex<Result<Vec<SocketAddr>, String>>>;

struct Fixture {
    found: Found,
    /// When each lookup was made.
    lookups: Arc<Mutex<Vec<Instant>>>,
    changes: super::super::Changes,
    refresh: Refresh,
}

fn addresses(ips: &[&str]) -> Vec<SocketAddr> {
    ips.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 50052)).collect()
}

fn follow(names: &[&str], found: Result<Vec<SocketAddr>, String>) -> Fixture {
    let (found, lookups): (Found, Arc<Mutex<Vec<_>>>) =
        (Arc::new(Mutex::new(found)), Arc::default());
    let (current, log) = (Arc::clone(&found), Arc::clone(&lookups));
    let resolver: Resolver = Arc::new(move |_, _| {
        log.lock().unwrap().push(Instant::now());
        let found = current.lock().unwrap().clone();
        Box::pin(async move { found.map_err(io::Error::other) })
    });
    let names: Vec<Address> = names.iter().map(|name| name.parse().unwrap()).collect();
    let Source { changes, refresh } = lookup_with(resolver, names);
    Fixture { found, lookups, changes, refresh }
}

impl Fixture {
    fn set(&self, found: Result<Vec<SocketAddr>, String>) {
        *self.found.lock().unwrap() = found;
    }

    /// The changes up to the next report of the source's state.
    async fn next(&mut self) -> (Vec<String>, Option<String>) {
        let mut changes = Vec::new();
        loop {
            match self.changes.next().await.unwrap() {
                Change::Insert(Candidate { id, address, is_named }) => {
                    assert!(!is_named, "a name in DNS is not the name of a worker");
                    changes.push(format!("+{id} {address}"));
                }
                Change::Remove(id) => changes.push(format!("-{id}")),
                Change::SourceError(error) => return (changes, error),
            }
        }
    }

    fn lookups(&self) -> Vec<Instant> {
        self.lookups.lock().unwrap().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn addresses_of_a_name_come_and_go() {
    let mut name = follow(&["workers:50052"], Ok(addresses(&["10.0.0.2", "10.0.0.1", "10.0.0.2"])));
    let first =
        ["+workers/10.0.0.1:50052 10.0.0.1:50052", "+workers/10.0.0.2:50052 10.0.0.2:50052"];
    assert_eq!(name.next().await, (first.map(str::to_owned).into(), None));
    name.set(Ok(addresses(&["10.0.0.2", "fd00::3"])));
    let then = ["-workers/10.0.0.1:50052", "+workers/[fd00::3]:50052 [fd00::3]:50052"];
    assert_eq!(name.next().await, (then.map(str::to_owned).into(), None));
    assert_eq!(name.next().await, (vec![], None), "nothing changed");
    let times = name.lookups();
    for pair in times.windows(2) {
        let interval = pair[1] - pair[0];
        assert!((4.0..=6.1).contains(&interval.as_secs_f64()), "{interval:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_or_empty_lookup_changes_nothing() {
    let mut name = follow(&["workers:50052"], Ok(addresses(&["10.0.0.1"])));
    assert_eq!(name.next().await.0.len(), 1);
    for lost in [Err("server failure".to_owned()), Ok(vec![])] {
        name.set(lost);
        assert_eq!(name.next().await, (vec![], None));
    }
    name.set(Ok(addresses(&["10.0.0.1"])));
    assert_eq!(name.next().await, (vec![], None), "it was known all the time");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_was_never_found_is_looked_up_every_second_with_the_reason() {
    let mut name = follow(&["workers:50052"], Err("no such host".into()));
    for _ in 0..20 {
        let reason = "workers:50052: no such host".to_owned();
        assert_eq!(name.next().await, (vec![], Some(reason)));
    }
    for pair in name.lookups().windows(2) {
        assert!(pair[1] - pair[0] <= MAX_RETRY_INTERVAL + Duration::from_millis(10));
    }
    name.set(Ok(addresses(&["10.0.0.1"])));
    assert_eq!(name.next().await, (vec!["+workers/10.0.0.1:50052 10.0.0.1:50052".into()], None));
}

#[tokio::test(start_paused = true)]
async fn the_failure_of_a_worker_repeats_the_lookup_at_once_but_not_more_than_once_a_second() {
    let mut name = follow(&["workers:50052"], Ok(addresses(&["10.0.0.1"])));
    name.next().await;
    for _ in 0..10 {
        name.refresh.request();
        name.next().await;
    }
    for pair in name.lookups().windows(2) {
        let interval = pair[1] - pair[0];
        assert!(interval >= MIN_INTERVAL && interval < MIN_INTERVAL * 2, "{interval:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn addresses_are_no_names_and_this_machine_is_one_worker() {
    let listed = ["127.0.0.1:1", "[::1]:2", "localhost:50052"];
    let mut name = follow(&listed, Ok(addresses(&["::1", "127.0.0.1"])));
    let first =
        ["+127.0.0.1:1 127.0.0.1:1", "+[::1]:2 [::1]:2", "+localhost:50052 localhost:50052"];
    assert_eq!(name.next().await, (first.map(str::to_owned).into(), None));

    let mut fixed = follow(&["127.0.0.1:1"], Err("not looked up".into()));
    assert!(matches!(fixed.changes.next().await, Some(Change::Insert(_))));
    assert!(fixed.changes.next().now_or_never().is_none());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(fixed.changes.next().now_or_never().is_none(), "the stream does not end");
    assert_eq!(fixed.lookups(), []);
}

#[tokio::test(start_paused = true)]
async fn a_name_has_a_limited_number_of_addresses() {
    let many = (0..5_000u32).map(|i| SocketAddr::new(Ipv4Addr::from(0x0a00_0000 + i).into(), 1));
    let mut name = follow(&["workers:1"], Ok(many.collect()));
    assert_eq!(name.next().await.0.len(), MAX_ADDRESSES);
}

#[tokio::test(start_paused = true)]
async fn the_reasons_of_all_names_are_given() {
    let mut names = follow(&["one:1", "two:2"], Err("no such host".into()));
    names.next().await;
    let all = "one:1: no such host; two:2: no such host".to_owned();
    assert_eq!(names.next().await, (vec![], Some(all)));
}

//! Strangers that write to the keys of workers: no worker may stay hidden from a router that starts later.

use std::time::Duration;

use etcd_client::PutOptions;

use crate::{
    Etcd, PREFIX, SHORT, announce, announce_with, config, follow,
    logs::Logs,
    view::{View, client, etcd_has, keys, put, remove},
};

const OURS: &str = "host:1";
/// Long enough to outlast a busy machine: the workers must keep their leases. They look at their keys every 2 s.
const LEASE: Duration = Duration::from_secs(6);

/// The lease that the stranger's value is put under.
#[derive(Debug, Clone, Copy)]
enum Under {
    Nothing,
    Worker,
    Other,
}

/// Values that do not make a rival of their writer under any lease.
fn values() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("nothing", Vec::new()),
        ("text", b"maintenance".to_vec()),
        ("control characters", b"\x1b[2J\n\0".to_vec()),
        ("no UTF-8", vec![0xff; 300]),
        ("no address", br#"{"model":"story"}"#.to_vec()),
        ("no address that can be dialled", br#"{"address":"nowhere"}"#.to_vec()),
        ("our address", br#"{"address":"host:1"}"#.to_vec()),
        // Below etcd's limit of a request, 1.5 MiB.
        ("a megabyte", vec![b'x'; 1 << 20]),
        ("a megabyte of JSON", format!(r#""{}""#, "x".repeat(1 << 20)).into_bytes()),
    ]
}

/// Every value under every lease, and a record of another address under those that make it no rival.
fn cases() -> Vec<(String, Under, Vec<u8>)> {
    let leases = [Under::Nothing, Under::Worker, Under::Other];
    let mut cases = Vec::new();
    for (name, value) in values() {
        cases.extend(leases.map(|under| (format!("{name} under {under:?}"), under, value.clone())));
    }
    let other = br#"{"address":"host:9"}"#;
    for under in [Under::Nothing, Under::Worker] {
        cases.push((format!("another address under {under:?}"), under, other.to_vec()));
    }
    cases
}

#[tokio::test]
async fn a_worker_takes_its_key_back_from_strangers() {
    for etcd in Etcd::each() {
        let logs = Logs::collect();
        let cases = cases();
        let workers: Vec<_> = cases
            .iter()
            .map(|(name, ..)| announce_with(config(&etcd), name, OURS, LEASE))
            .collect();
        let mut running = follow(&etcd);
        running.until(|v| cases.iter().all(|(name, ..)| v.has(name, OURS))).await;

        let (mut client, held) = (client(&etcd).await, keys(&etcd).await);
        let stranger = client.lease_grant(600, None).await.unwrap().id();
        for (name, under, value) in &cases {
            let key = format!("{PREFIX}{name}");
            let lease = match under {
                Under::Nothing => 0,
                Under::Worker => held.iter().find(|held| held.name == key).unwrap().lease,
                Under::Other => stranger,
            };
            let options = PutOptions::new().with_lease(lease);
            client.put(key, value.clone(), Some(options)).await.unwrap();
        }
        let mut later = follow(&etcd);
        later.until(|v| cases.iter().all(|(name, ..)| v.has(name, OURS))).await;
        etcd_has(&etcd, "every key under its worker's lease", |now| {
            now.iter().all(|key| held.iter().any(|was| was.is(key)))
        })
        .await;
        // The keys are not the stranger's in any way.
        client.lease_revoke(stranger).await.unwrap();
        assert_eq!(keys(&etcd).await.len(), cases.len());
        // A router that was there has seen most of them go, and everything come back.
        running.until(|v| cases.iter().all(|(name, ..)| v.has(name, OURS))).await;

        for (name, ..) in &cases {
            let taken = logs.lines(&["a stranger wrote", name]);
            assert_eq!(taken.len(), 1, "{name}: {taken:?}");
        }
        let longest = logs.lines(&["WARN"]).into_iter().map(|line| line.len()).max().unwrap();
        assert!(longest < 1_000, "a line of {longest} bytes");
        assert!(!logs.text().contains(['\u{1b}', '\0']));
        drop(workers);
    }
}

#[tokio::test]
async fn a_router_that_runs_sees_a_worker_again_that_a_stranger_hid() {
    for etcd in Etcd::each() {
        let _worker = announce_with(config(&etcd), "a", OURS, SHORT);
        let mut view = follow(&etcd);
        view.until(|v| v.has("a", OURS)).await;
        for value in ["garbage", r#"{"address":"host:1"#] {
            put(&etcd, &format!("{PREFIX}a"), value).await;
            view.until(View::is_empty).await;
            view.until(|v| v.has("a", OURS)).await;
        }
    }
}

#[tokio::test]
async fn what_was_there_before_a_worker_does_not_hide_it() {
    for etcd in Etcd::each() {
        let mut client = client(&etcd).await;
        let stranger = client.lease_grant(600, None).await.unwrap().id();
        let mut names = Vec::new();
        for (name, value) in values() {
            for lease in [0, stranger] {
                let options = PutOptions::new().with_lease(lease);
                let name = format!("{name} under {lease}");
                let key = format!("{PREFIX}{name}");
                client.put(key, value.clone(), Some(options)).await.unwrap();
                names.push(name);
            }
        }
        let workers: Vec<_> = names.iter().map(|name| announce(&etcd, name, OURS)).collect();
        follow(&etcd).until(|v| names.iter().all(|name| v.has(name, OURS))).await;
        etcd_has(&etcd, "no key of the stranger", |now| {
            now.iter().all(|key| key.lease != 0 && key.lease != stranger)
        })
        .await;
        drop(workers);
    }
}

#[tokio::test]
async fn values_too_large_for_one_message_do_not_blind_routers() {
    for etcd in Etcd::each() {
        let mut running = follow(&etcd);
        running.until(|v| v.trouble_says(&["has no key under"])).await;
        for name in 0..6 {
            put(&etcd, &format!("{PREFIX}{name}"), &"x".repeat(1 << 20)).await;
        }
        let _worker = announce(&etcd, "a", OURS);
        running.until(|v| v.has("a", OURS)).await;
        follow(&etcd).until(|v| v.has("a", OURS)).await;
    }
}

#[tokio::test]
async fn a_key_that_is_deleted_is_found_by_a_later_router() {
    for etcd in Etcd::each() {
        let _worker = announce_with(config(&etcd), "a", OURS, SHORT);
        follow(&etcd).until(|v| v.has("a", OURS)).await;
        remove(&etcd, &format!("{PREFIX}a")).await;
        follow(&etcd).until(|v| v.has("a", OURS)).await;
    }
}

#[tokio::test]
async fn a_rival_is_named_once_and_left_in_peace() {
    for etcd in Etcd::each() {
        let logs = Logs::collect();
        let _first = announce_with(config(&etcd), "a", OURS, SHORT);
        follow(&etcd).until(|v| v.has("a", OURS)).await;
        let mut client = client(&etcd).await;
        let lease = client.lease_grant(600, None).await.unwrap().id();
        let record = format!(r#"{{"address":"host:2","model":"{}"}}"#, "x".repeat(1 << 20));
        let options = PutOptions::new().with_lease(lease);
        client.put(format!("{PREFIX}a"), record, Some(options)).await.unwrap();
        logs.until(&["another worker has this id", "host:2"]).await;
        // Several signs of life of the first one later.
        let dying = announce_with(config(&etcd), "dying", "host:3", SHORT);
        let mut view = follow(&etcd);
        view.until(|v| v.has("dying", "host:3")).await;
        drop(dying);
        view.until(|v| !v.has("dying", "host:3")).await;
        assert!(view.has("a", "host:2"));
        let named = logs.lines(&["another worker has this id"]);
        assert!(named.len() == 1 && named[0].len() < 1_000, "{}", named[0].len());
        // The id is free again.
        client.lease_revoke(lease).await.unwrap();
        follow(&etcd).until(|v| v.has("a", OURS)).await;
    }
}

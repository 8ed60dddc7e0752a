//! Other clients that write to the keys of workers: no worker may stay hidden from a router that
//! starts later.

use std::time::Duration;

use etcd_client::PutOptions;

use crate::{
    Etcd, PREFIX, SHORT, announce, announce_with, config, follow,
    logs::Logs,
    view::{View, client, etcd_has, keys, put, remove},
};

const ADDRESS: &str = "host:1";
/// Long enough for a busy machine: the workers must keep their leases. They check their keys every
/// 2 s.
const LEASE: Duration = Duration::from_secs(6);

/// The lease of the foreign value.
#[derive(Debug, Clone, Copy)]
enum Under {
    Nothing,
    Worker,
    Other,
}

/// Values that are not taken for another worker under any lease.
fn values() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("nothing", Vec::new()),
        ("text", b"maintenance".to_vec()),
        ("control characters", b"\x1b[2J\n\0".to_vec()),
        ("no UTF-8", vec![0xff; 300]),
        ("no address", br#"{"model":"story"}"#.to_vec()),
        ("no address that can be dialled", br#"{"address":"nowhere"}"#.to_vec()),
        ("the worker's address", br#"{"address":"host:1"}"#.to_vec()),
        // Below etcd's limit of a request, 1.5 MiB.
        ("a megabyte", vec![b'x'; 1 << 20]),
        ("a megabyte of JSON", format!(r#""{}""#, "x".repeat(1 << 20)).into_bytes()),
    ]
}

/// Every value under every lease, and a record with another address under the leases for which it
/// is not taken for another worker.
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
async fn a_worker_restores_its_key_after_foreign_writes() {
    for etcd in Etcd::each() {
        let logs = Logs::collect();
        let cases = cases();
        let workers: Vec<_> = cases
            .iter()
            .map(|(name, ..)| announce_with(config(&etcd), name, ADDRESS, LEASE))
            .collect();
        let mut running = follow(&etcd);
        running.until(|v| cases.iter().all(|(name, ..)| v.has(name, ADDRESS))).await;

        let (mut client, original) = (client(&etcd).await, keys(&etcd).await);
        let foreign_lease = client.lease_grant(600, None).await.unwrap().id();
        for (name, under, value) in &cases {
            let key = format!("{PREFIX}{name}");
            let lease = match under {
                Under::Nothing => 0,
                Under::Worker => {
                    original.iter().find(|original| original.name == key).unwrap().lease
                }
                Under::Other => foreign_lease,
            };
            let options = PutOptions::new().with_lease(lease);
            client.put(key, value.clone(), Some(options)).await.unwrap();
        }
        let mut later = follow(&etcd);
        later.until(|v| cases.iter().all(|(name, ..)| v.has(name, ADDRESS))).await;
        etcd_has(&etcd, "every key under its worker's lease", |current| {
            current.iter().all(|key| original.iter().any(|was| was.is(key)))
        })
        .await;
        // The keys do not depend on the foreign lease.
        client.lease_revoke(foreign_lease).await.unwrap();
        assert_eq!(keys(&etcd).await.len(), cases.len());
        // A router that was running has seen most workers removed and all of them return.
        running.until(|v| cases.iter().all(|(name, ..)| v.has(name, ADDRESS))).await;

        for (name, ..) in &cases {
            let restored = logs.lines(&["another client overwrote", name]);
            assert_eq!(restored.len(), 1, "{name}: {restored:?}");
        }
        let longest = logs.lines(&["WARN"]).into_iter().map(|line| line.len()).max().unwrap();
        assert!(longest < 1_000, "a line of {longest} bytes");
        assert!(!logs.text().contains(['\u{1b}', '\0']));
        drop(workers);
    }
}

#[tokio::test]
async fn a_running_router_sees_a_worker_return_after_a_foreign_write() {
    for etcd in Etcd::each() {
        let _worker = announce_with(config(&etcd), "a", ADDRESS, SHORT);
        let mut view = follow(&etcd);
        view.until(|v| v.has("a", ADDRESS)).await;
        for value in ["garbage", r#"{"address":"host:1"#] {
            put(&etcd, &format!("{PREFIX}a"), value).await;
            view.until(View::is_empty).await;
            view.until(|v| v.has("a", ADDRESS)).await;
        }
    }
}

#[tokio::test]
async fn values_that_existed_before_a_worker_do_not_hide_it() {
    for etcd in Etcd::each() {
        let mut client = client(&etcd).await;
        let foreign_lease = client.lease_grant(600, None).await.unwrap().id();
        let mut names = Vec::new();
        for (name, value) in values() {
            for lease in [0, foreign_lease] {
                let options = PutOptions::new().with_lease(lease);
                let name = format!("{name} under {lease}");
                let key = format!("{PREFIX}{name}");
                client.put(key, value.clone(), Some(options)).await.unwrap();
                names.push(name);
            }
        }
        let workers: Vec<_> = names.iter().map(|name| announce(&etcd, name, ADDRESS)).collect();
        follow(&etcd).until(|v| names.iter().all(|name| v.has(name, ADDRESS))).await;
        etcd_has(&etcd, "no key under the foreign lease", |current| {
            current.iter().all(|key| key.lease != 0 && key.lease != foreign_lease)
        })
        .await;
        drop(workers);
    }
}

#[tokio::test]
async fn values_larger_than_one_message_do_not_hide_workers() {
    for etcd in Etcd::each() {
        let mut running = follow(&etcd);
        running.until(|v| v.error_contains(&["has no key under"])).await;
        for name in 0..6 {
            put(&etcd, &format!("{PREFIX}{name}"), &"x".repeat(1 << 20)).await;
        }
        let _worker = announce(&etcd, "a", ADDRESS);
        running.until(|v| v.has("a", ADDRESS)).await;
        follow(&etcd).until(|v| v.has("a", ADDRESS)).await;
    }
}

#[tokio::test]
async fn a_deleted_key_is_restored_for_a_later_router() {
    for etcd in Etcd::each() {
        let _worker = announce_with(config(&etcd), "a", ADDRESS, SHORT);
        follow(&etcd).until(|v| v.has("a", ADDRESS)).await;
        remove(&etcd, &format!("{PREFIX}a")).await;
        follow(&etcd).until(|v| v.has("a", ADDRESS)).await;
    }
}

#[tokio::test]
async fn another_worker_with_the_same_id_is_reported_once_and_not_overwritten() {
    for etcd in Etcd::each() {
        let logs = Logs::collect();
        let _first = announce_with(config(&etcd), "a", ADDRESS, SHORT);
        follow(&etcd).until(|v| v.has("a", ADDRESS)).await;
        let mut client = client(&etcd).await;
        let lease = client.lease_grant(600, None).await.unwrap().id();
        let record = format!(r#"{{"address":"host:2","model":"{}"}}"#, "x".repeat(1 << 20));
        let options = PutOptions::new().with_lease(lease);
        client.put(format!("{PREFIX}a"), record, Some(options)).await.unwrap();
        logs.until(&["another worker has this id", "host:2"]).await;
        // The first worker has sent several keep-alives since.
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
        follow(&etcd).until(|v| v.has("a", ADDRESS)).await;
    }
}

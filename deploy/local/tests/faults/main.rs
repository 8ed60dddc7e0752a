//! What breaks, and what clients see of it: real processes, real sockets, no mocks. Each test is a row of the
//! table in docs/reliability.md; `scripts/faults` runs all of them and writes it.
//!
//! A row takes three steps: ask an undisturbed worker for the answers, ask a cluster for the same ones while
//! something breaks, and wait until everything that was held for them is free again.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unreachable_pub, reason = "a test has no outside")]

mod bounds;
mod busy;
mod clients;
mod discovery;
#[path = "../../../../shared/tests/etcd/server.rs"]
mod etcd_server;
mod fleet;
mod full;
mod identity;
mod kills;
mod load;
mod namespace;
mod network;
mod partition;
mod poison;
mod protocol;
mod proxy;
mod routers;
mod row;
mod stops;
#[path = "../cluster/support.rs"]
#[allow(dead_code, reason = "the tests of the cluster need more of it")]
mod support;
mod unequal;
mod wire;

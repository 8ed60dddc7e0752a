//! Faults and their effect on clients: real processes, real sockets, no mocks. Each test is a row
//! of the table in docs/reliability.md; `scripts/faults` runs all of them and writes the table.
//!
//! A case has three steps: record the completions of an undisturbed worker, send the same requests
//! to a cluster while a fault is injected, and wait until all resources held for them are released.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unreachable_pub, reason = "a test has no outside")]

mod bounds;
mod busy;
mod clients;
mod clock;
mod discovery;
mod dns;
#[path = "../../../../shared/tests/etcd/server.rs"]
mod etcd_server;
mod fault_case;
mod fleet;
mod full;
mod http;
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
mod stops;
#[path = "../cluster/support.rs"]
#[allow(dead_code, reason = "the tests of the cluster need more of it")]
mod support;
mod unequal;
mod wire;

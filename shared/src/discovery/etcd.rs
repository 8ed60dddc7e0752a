//! Discovery through etcd.
//!
//! A worker holds one key under a lease that it keeps alive: [`register`]. A router lists all keys,
//! watches for changes, and repeats the list periodically: [`watch`]. Both retry for as long as
//! they live, and survive an etcd that is unreachable, paused, restarted or wiped. The value of a
//! key is a [`WorkerRecord`].

mod auth;
mod config;
mod failover;
mod metrics;
mod register;
mod session_error;
mod watch;
mod worker_record;

#[cfg(test)]
#[path = "../../tests/etcd/server.rs"]
mod server;

pub use auth::{AuthError, EtcdAuth};
pub use config::{Endpoint, EtcdConfig, EtcdConfigError, NotAnEndpoint};
pub use metrics::EtcdMetrics;
pub use register::{Registration, register};
pub use watch::watch;
pub use worker_record::{Capacity, WorkerRecord};

//! Workers that announce themselves in etcd.
//!
//! A worker holds one key, under a lease that it keeps alive: [`register`]. A router lists all of them, watches
//! for changes, and lists again from time to time: [`watch`]. Both try for as long as they live, and outlast an
//! etcd that is away, paused, restarted or wiped. The value of a key is a [`WorkerRecord`].

mod attempts;
mod auth;
mod config;
mod excerpt;
mod failure;
mod register;
mod watch;
mod worker_record;

#[cfg(test)]
#[path = "../../tests/etcd/server.rs"]
mod server;

pub use auth::{AuthError, EtcdAuth};
pub use config::{Endpoint, EtcdConfig, NotAnEndpoint};
pub use register::{Registration, register};
pub use watch::watch;
pub use worker_record::{Capacity, WorkerRecord};

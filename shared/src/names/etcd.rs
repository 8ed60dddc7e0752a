//! Metrics of the session with etcd, of processes that have `--etcd`.

use super::{Kind, Metric, metric};

/// `stoker_etcd_connected`
pub const CONNECTED: Metric = metric(
    "stoker_etcd_connected",
    Kind::Gauge,
    &[],
    "1 while the session with etcd works: a router follows all keys, a worker holds its own; otherwise 0",
);
/// `stoker_etcd_failures_total`
pub const FAILURES: Metric = metric(
    "stoker_etcd_failures",
    Kind::Counter,
    &[],
    "Sessions with etcd that failed or could not be established",
);

/// All metrics of this module.
pub const ALL: &[Metric] = &[CONNECTED, FAILURES];

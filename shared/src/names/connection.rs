//! Metrics of connections, and of requests before they are complete.

use super::{Kind, Metric, label, metric};

/// `stoker_connections`
pub const OPEN: Metric = metric("stoker_connections", Kind::Gauge, &[], "Open connections");
/// `stoker_connections_accepted_total`
pub const ACCEPTED: Metric =
    metric("stoker_connections_accepted", Kind::Counter, &[], "Accepted connections");
/// `stoker_accept_errors_total`
pub const ACCEPT_ERRORS: Metric = metric(
    "stoker_accept_errors",
    Kind::Counter,
    &[],
    "Errors of accepting a connection, for instance for lack of file descriptors",
);
/// `stoker_connections_slowed_total`
pub const SLOWED: Metric = metric(
    "stoker_connections_slowed",
    Kind::Counter,
    &[],
    "Connections that were read more slowly, since their client reset many calls before a response",
);
/// `stoker_connections_closed_total`
pub const CLOSED: Metric = metric(
    "stoker_connections_closed",
    Kind::Counter,
    &[label::CAUSE],
    "Connections that this process closed",
);
/// `stoker_incomplete_requests_refused_total`
pub const REJECTED: Metric = metric(
    "stoker_incomplete_requests_refused",
    Kind::Counter,
    &[label::CAUSE],
    "Requests that were rejected while they were received",
);
/// `stoker_write_stalls_total`
pub const WRITE_STALLS: Metric = metric(
    "stoker_write_stalls",
    Kind::Counter,
    &[],
    "Responses that were ended because their client did not read them",
);

/// All metrics of this module.
pub const ALL: &[Metric] = &[OPEN, ACCEPTED, ACCEPT_ERRORS, SLOWED, CLOSED, REJECTED, WRITE_STALLS];

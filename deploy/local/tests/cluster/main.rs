//! End-to-end tests of the cluster: real processes, real sockets, the bundled model.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unreachable_pub, reason = "a test has no outside")]

mod authority;
mod bad_input;
mod chat_command;
mod churn;
mod clients;
mod clients_tls;
mod command_line;
mod configuration;
mod contract;
mod dashboards;
mod discovery;
mod drain;
mod drain_command;
mod empty_variables;
#[path = "../../../../shared/tests/etcd/server.rs"]
mod etcd_server;
mod exposure;
mod health_command;
mod limits;
mod listening;
mod load_test;
mod metrics;
mod openai;
mod otlp_collector;
mod prefix_cache;
mod priority;
mod probes;
mod prometheus;
mod recent_requests;
mod sampling;
mod simulated;
mod start_failures;
mod status;
mod support;
mod telemetry;
mod tenants;
mod tls;
mod tls_identity;
mod trace_content;
mod trace_store;
mod trust;
mod worker_names;

//! The chart on a Kubernetes cluster: pods that are upgraded, deleted, evicted and scaled under
//! load, and what a pod that cannot start says.
//!
//! `scripts/kubernetes` runs all of it. `KUBECONFIG` names the cluster, which has the images of
//! `scripts/images`; `kubectl` and `helm` are in `PATH`. A test has a namespace of its own, which
//! enforces the restricted Pod Security Standard and which it removes. A load is a pod, so that it
//! reaches routers through their Service, and it expects what an undisturbed worker on this machine
//! generates.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unreachable_pub, reason = "a test has no outside")]

mod disruptions;
mod install;
mod load;
mod monitoring;
mod namespace;
mod port_forward;
mod release;
mod scale;
#[path = "../../../../shared/tests/support/skip.rs"]
mod skip;
mod start_failures;
#[path = "../cluster/support.rs"]
#[allow(dead_code, reason = "the tests of the cluster need more of it")]
mod support;
mod tool;
mod upgrade;

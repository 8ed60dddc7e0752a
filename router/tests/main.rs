//! End-to-end tests of the router, in one binary so that it is linked once.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "tests")]

mod balancing;
mod cli;
mod deadlines;
mod failures;
mod generate;
mod health;
mod lifecycle;
mod operators;
mod resume;
mod support;
mod tenants;
mod workers;

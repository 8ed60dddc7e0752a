//! Tests of the whole engine: real models, reference vectors, and invariants of every plan.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unreachable_pub, reason = "a test has no outside")]

mod adjustments;
mod choices;
mod devices;
mod emitting;
mod exactness;
mod failing;
mod families;
mod invariants;
mod logprobs;
mod panicking;
mod prefix_cache;
mod queueing;
mod resuming;
mod scheduling;
#[path = "../../../../shared/tests/support/skip.rs"]
mod skip;
mod soak;
mod speculating;
mod support;
mod vectors;

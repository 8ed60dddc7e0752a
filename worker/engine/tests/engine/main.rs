//! The engine as a whole: real models, real vectors, and the promises that every plan must keep.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unreachable_pub, reason = "a test has no outside")]

mod adjusting;
mod choices;
mod devices;
mod emitting;
mod exactness;
mod failing;
mod families;
mod logprobs;
mod panicking;
mod prefix_cache;
mod promises;
mod queueing;
mod resuming;
mod scheduling;
#[path = "../../../../shared/tests/support/skip.rs"]
mod skip;
mod soak;
mod speculating;
mod support;
mod vectors;

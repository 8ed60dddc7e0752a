//! Runs the load test program against a scripted server.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unreachable_pub, reason = "a test has no outside")]

mod at_scale;
mod comparing;
mod kinds;
mod measuring;
mod openai;
mod page;
mod support;
mod usage;
mod verifying;

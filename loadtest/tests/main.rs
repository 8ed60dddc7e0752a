//! The load test as a shell sees it, against a server that answers by a script.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unreachable_pub, reason = "a test has no outside")]

mod measuring;
mod support;
mod usage;
mod verifying;

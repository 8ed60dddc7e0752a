//! When requests arrive: a rate over time, how evenly, and the schedule that results.

pub mod process;
pub mod rate;
pub mod schedule;

//! Loads a cluster, measures what its clients see, and checks that no response is lost or altered.
//!
//! `plan` defines the requests, and `schedule` their times from a `rate` and a `process`. `run` sends them, one `call` each.
//! `results` accumulates measurements, `verify` compares responses, and `summary` is the content of
//! both the table of `report` and the JSON file.

pub mod call;
pub mod cli;
pub mod command;
pub mod digest;
pub mod error;
pub mod objectives;
pub mod plan;
pub mod process;
pub mod progress;
pub mod prompts;
pub mod rate;
pub mod report;
pub mod results;
pub mod run;
pub mod schedule;
pub mod summary;
pub mod synthetic;
pub mod trace;
pub mod verify;

//! Loads a cluster, measures what its clients see, and checks that no answer is lost or altered.
//!
//! `plan` says what to send and `schedule` when; `run` sends it, one `call` each; `results` counts what came
//! and `verify` compares it; `summary` is what both `report` and the JSON file say.

pub mod call;
pub mod cli;
pub mod command;
pub mod digest;
pub mod error;
pub mod plan;
pub mod progress;
pub mod prompts;
pub mod report;
pub mod results;
pub mod run;
pub mod schedule;
pub mod summary;
pub mod synthetic;
pub mod verify;

//! Loads a cluster, measures what its clients see, and checks that no response is lost or altered.
//!
//! `requests` defines what is sent, and `arrivals` when. `drive` sends it to one of the `targets`, which turns
//! responses into outcomes. `measure` accumulates them, `verify` compares responses, and `report` shows
//! results as a table, as JSON and CSV, and as a page. `sweep` searches the highest rate that meets
//! objectives, and `compare` compares the results of runs.

pub mod arrivals;
pub mod cli;
pub mod command;
pub mod compare;
pub mod drive;
pub mod error;
pub mod measure;
pub mod report;
pub mod requests;
mod rng;
pub mod stats;
pub mod sweep;
pub mod targets;
pub mod verify;

//! Loads a cluster, measures what its clients see, and checks that no response is lost or altered.
//!
//! `requests` defines what is sent, and `arrivals` when. `drive` sends it to one of the `targets`, which turns
//! responses into outcomes. `measure` accumulates them, `verify` compares responses, and `report` shows
//! results as a table, as JSON and CSV, and as a page. `sweep` searches the highest rate that meets
//! objectives, and `compare` compares the results of runs.
//!
//! ```
//! use std::time::Duration;
//! use stoker_loadtest::arrivals::rate::RateProfile;
//!
//! // 10 requests per second for a minute, then a ramp to 50 within another.
//! let profile: RateProfile = "10:1m,10-50:1m".parse()?;
//! assert_eq!(profile.total(), Some(Duration::from_secs(120)));
//! assert_eq!(profile.time_of(300.0), Some(Duration::from_secs(30)));
//! # Ok::<(), String>(())
//! ```

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

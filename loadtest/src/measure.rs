//! Measurements of a pass, in memory that does not grow with the number of requests.

pub mod latency;
pub mod objectives;
pub mod results;
pub mod samples;
pub mod slices;

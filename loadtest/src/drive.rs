//! A pass: streams that send requests and read responses, what is done beside them, and whether this
//! program was fast enough.

pub mod driver;
pub mod faults;
pub mod pass;
pub mod prometheus;
pub mod scrape;

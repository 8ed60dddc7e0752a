//! What people and programs read: the summary, which is the JSON file, and the table, CSV file, page and
//! progress that show the same.

mod chart;
pub mod config;
pub mod csv_file;
pub mod driver;
pub(crate) mod format;
pub mod json;
pub mod latency;
pub mod page;
mod panels;
pub mod progress;
pub mod summary;
pub mod sweep;
pub mod table;
pub mod timeline;

//! Rows: a table while they arrive, CSV and JSON.

mod columns;
mod output;
mod row;
mod table;

pub(super) use output::{Files, Output};
pub(super) use row::TableRow;
pub use row::{BenchRow, keys};

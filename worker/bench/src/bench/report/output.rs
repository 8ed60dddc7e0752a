//! Output of rows: a table, CSV and JSON.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};

use stoker_shared::cli::FileError;

use super::{
    columns,
    row::{self, BenchRow, TableRow},
    table,
};
use crate::{
    Error,
    bench::{BenchArgs, job::Job, progress_bar::ProgressDisplay},
    json_file,
    workloads::Columns,
};

/// The files of the rows.
pub(in crate::bench) struct Files {
    csv: Option<Csv>,
    json: Option<PathBuf>,
}

/// Destination of CSV. Rows are written as they arrive, so that a failed job does not lose earlier
/// rows.
enum Csv {
    File(File, PathBuf),
    Stdout,
}

impl Files {
    /// Opens the files, so that a file that cannot be written is reported before any job runs.
    pub(in crate::bench) fn open(args: &BenchArgs) -> Result<Self, Error> {
        let csv = match &args.csv {
            None => None,
            Some(path) if path == Path::new("-") => Some(Csv::Stdout),
            Some(path) => {
                let file = File::create(path).map_err(FileError::at("--csv", path))?;
                Some(Csv::File(file, path.clone()))
            }
        };
        json_file::claim(args.json.as_deref())?;
        Ok(Self { csv, json: args.json.clone() })
    }
}

/// The rows so far and the destinations they are written to.
pub(in crate::bench) struct Output {
    files: Files,
    columns: Columns,
    /// Whether rows of a case are repetitions.
    repeats: bool,
    rows: Vec<BenchRow>,
}

impl Output {
    pub(in crate::bench) fn new(files: Files, columns: Columns, repeats: bool) -> Self {
        Self { files, columns, repeats, rows: Vec::new() }
    }

    /// Prints a headline, and the headers of the table and of CSV.
    pub(in crate::bench) fn begin(
        &mut self,
        progress: &ProgressDisplay,
        jobs: &[Job],
    ) -> Result<(), Error> {
        self.csv_line(progress, &row::csv_header())?;
        let Some(first) = jobs.first() else { return Ok(()) };
        let mut kinds: Vec<_> = jobs.iter().map(|job| job.case.quantize.as_str()).collect();
        kinds.dedup();
        let (kinds, threads) = (kinds.join(" and "), stoker_ops::cpu::threads());
        let headline = format!("{}, quantize {kinds}, {threads} threads\n", first.case.model);
        self.print(progress, &headline)?;
        self.print(progress, &table::header(&columns::names(self.columns)))
    }

    /// Prints a row and writes it as CSV.
    pub(in crate::bench) fn add(
        &mut self,
        progress: &ProgressDisplay,
        table_row: TableRow,
    ) -> Result<(), Error> {
        let values = columns::values(self.columns, &self.rows, &table_row);
        self.print(progress, &table::row(&table_row, &values))?;
        if let Some(gpu) = table_row.gpu.summary() {
            self.print(progress, &format!("  GPU: {gpu}"))?;
        }
        if let Some(summary) = &table_row.summary {
            self.print(progress, &format!("  {summary}"))?;
        }
        let line = table_row.row.csv().map_err(|error| Error::Failed(error.to_string()))?;
        self.csv_line(progress, &line)?;
        self.rows.push(table_row.row);
        Ok(())
    }

    /// Prints the medians and writes the JSON file.
    pub(in crate::bench) fn finish(self, progress: &ProgressDisplay) -> Result<(), Error> {
        let medians = if self.repeats { table::medians(&self.rows) } else { Vec::new() };
        if !medians.is_empty() {
            self.print(progress, &format!("\nmedians\n{}", medians.join("\n")))?;
        }
        json_file::write(self.files.json.as_deref(), &self.rows)
    }

    fn csv_line(&mut self, progress: &ProgressDisplay, line: &str) -> Result<(), Error> {
        match &mut self.files.csv {
            None => Ok(()),
            Some(Csv::Stdout) => progress.print(|| json_file::print(&format!("{line}\n"))),
            Some(Csv::File(open, path)) => {
                Ok(writeln!(open, "{line}").map_err(FileError::at("--csv", path))?)
            }
        }
    }

    /// Prints a line of the table, on standard error if CSV goes to standard output.
    fn print(&self, progress: &ProgressDisplay, line: &str) -> Result<(), Error> {
        progress.print(|| match self.files.csv {
            Some(Csv::Stdout) => {
                eprintln!("{line}");
                Ok(())
            }
            _ => json_file::print(&format!("{line}\n")),
        })
    }
}

//! Output of rows: a table, CSV and JSON.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{
    cli::BenchArgs,
    error::Error,
    job::Job,
    process::ProgressDisplay,
    row::{self, BenchRow, TableRow},
    speedup::SpeedupColumns,
    table,
};

/// The rows so far and the destinations they are written to.
pub(super) struct Output {
    csv: Option<Csv>,
    json: Option<PathBuf>,
    speedups: SpeedupColumns,
    soak: bool,
    rows: Vec<BenchRow>,
}

/// Destination of CSV. Rows are written as they arrive, so that a failed job does not lose earlier
/// rows.
enum Csv {
    File(File, PathBuf),
    Stdout,
}

impl Output {
    /// Opens the files, so that a file that cannot be written is reported before any job runs.
    pub(super) fn open(args: &BenchArgs) -> Result<Self, Error> {
        let csv = match &args.csv {
            None => None,
            Some(path) if path == Path::new("-") => Some(Csv::Stdout),
            Some(path) => {
                let file = File::create(path).map_err(|error| file("--csv", path, error))?;
                Some(Csv::File(file, path.clone()))
            }
        };
        if let Some(path) = &args.json {
            File::create(path).map_err(|error| file("--json", path, error))?;
        }
        Ok(Self {
            csv,
            json: args.json.clone(),
            speedups: SpeedupColumns::of(args),
            soak: args.soak.is_some(),
            rows: Vec::new(),
        })
    }

    /// Prints a headline, and the headers of the table and of CSV.
    pub(super) fn begin(&mut self, progress: &ProgressDisplay, jobs: &[Job]) -> Result<(), Error> {
        self.csv_line(progress, &row::csv_header())?;
        let Some(first) = jobs.first() else { return Ok(()) };
        let mut kinds: Vec<_> = jobs.iter().map(|job| job.quantize.as_str()).collect();
        kinds.dedup();
        let (kinds, threads) = (kinds.join(" and "), stoker_ops::cpu::threads());
        let headline = format!("{}, quantize {kinds}, {threads} threads\n", first.model);
        self.print(progress, &headline)?;
        self.print(progress, &table::header(&self.speedups.names()))
    }

    /// Prints a row and writes it as CSV.
    pub(super) fn add(
        &mut self,
        progress: &ProgressDisplay,
        table_row: TableRow,
    ) -> Result<(), Error> {
        let speedups = self.speedups.values(&self.rows, &table_row.row);
        self.print(progress, &table::row(&table_row, &speedups))?;
        if let Some(gpu) = table_row.gpu.summary() {
            self.print(progress, &format!("  GPU: {gpu}"))?;
        }
        if let Some(summary) = table_row.row.prefill_interference() {
            self.print(progress, &format!("  {summary}"))?;
        }
        let line = table_row.row.csv().map_err(|error| Error::Failed(error.to_string()))?;
        self.csv_line(progress, &line)?;
        self.rows.push(table_row.row);
        Ok(())
    }

    /// Prints the medians and writes the JSON file.
    pub(super) fn finish(self, progress: &ProgressDisplay) -> Result<(), Error> {
        let medians = if self.soak { Vec::new() } else { table::medians(&self.rows) };
        if !medians.is_empty() {
            self.print(progress, &format!("\nmedians\n{}", medians.join("\n")))?;
        }
        let Some(path) = &self.json else { return Ok(()) };
        let mut text = serde_json::to_string_pretty(&self.rows)
            .map_err(|error| Error::Failed(error.to_string()))?;
        text.push('\n');
        fs::write(path, text).map_err(|error| file("--json", path, error))
    }

    fn csv_line(&mut self, progress: &ProgressDisplay, line: &str) -> Result<(), Error> {
        match &mut self.csv {
            None => Ok(()),
            Some(Csv::Stdout) => progress.print(|| to_stdout(line)),
            Some(Csv::File(open, path)) => {
                writeln!(open, "{line}").map_err(|error| file("--csv", path, error))
            }
        }
    }

    /// Prints a line of the table, on standard error if CSV goes to standard output.
    fn print(&self, progress: &ProgressDisplay, line: &str) -> Result<(), Error> {
        progress.print(|| match self.csv {
            Some(Csv::Stdout) => {
                eprintln!("{line}");
                Ok(())
            }
            _ => to_stdout(line),
        })
    }
}

fn to_stdout(line: &str) -> Result<(), Error> {
    let printed = writeln!(io::stdout(), "{line}");
    printed.map_err(|error| Error::Failed(format!("standard output: {error}")))
}

fn file(flag: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File { flag, path: path.into(), source }
}

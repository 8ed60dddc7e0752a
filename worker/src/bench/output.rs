//! Where rows go: a table, CSV and JSON.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{
    cli::BenchArgs,
    error::Error,
    factor::Factors,
    job::Job,
    process::Progress,
    row::{self, Measured, Row},
    table,
};

/// The rows so far, and where they go.
pub(super) struct Output {
    csv: Option<Csv>,
    json: Option<PathBuf>,
    factors: Factors,
    soak: bool,
    rows: Vec<Row>,
}

/// A CSV file that is written row by row: what is measured is not lost if a later row fails.
enum Csv {
    File(File, PathBuf),
    Stdout,
}

impl Output {
    /// Opens the files, so that one that cannot be written is known before anything is measured.
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
            factors: Factors::of(args),
            soak: args.soak.is_some(),
            rows: Vec::new(),
        })
    }

    /// Says what will be measured, and names the columns.
    pub(super) fn begin(&mut self, progress: &Progress, jobs: &[Job]) -> Result<(), Error> {
        self.csv_line(progress, &row::csv_header())?;
        let Some(first) = jobs.first() else { return Ok(()) };
        let mut kinds: Vec<_> = jobs.iter().map(|job| job.quantize.as_str()).collect();
        kinds.dedup();
        let (kinds, threads) = (kinds.join(" and "), stoker_ops::cpu::threads());
        let headline = format!("{}, quantize {kinds}, {threads} threads\n", first.model);
        self.print(progress, &headline)?;
        self.print(progress, &table::header(&self.factors.names()))
    }

    /// Takes a row.
    pub(super) fn add(&mut self, progress: &Progress, measured: Measured) -> Result<(), Error> {
        let factors = self.factors.over(&self.rows, &measured.row);
        self.print(progress, &table::row(&measured, &factors))?;
        if let Some(gpu) = measured.gpu.summary() {
            self.print(progress, &format!("  GPU: {gpu}"))?;
        }
        if let Some(beside) = measured.row.beside() {
            self.print(progress, &format!("  {beside}"))?;
        }
        let line = measured.row.csv().map_err(|error| Error::Failed(error.to_string()))?;
        self.csv_line(progress, &line)?;
        self.rows.push(measured.row);
        Ok(())
    }

    /// Writes what is written at the end.
    pub(super) fn finish(self, progress: &Progress) -> Result<(), Error> {
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

    fn csv_line(&mut self, progress: &Progress, line: &str) -> Result<(), Error> {
        match &mut self.csv {
            None => Ok(()),
            Some(Csv::Stdout) => progress.print(|| to_stdout(line)),
            Some(Csv::File(open, path)) => {
                writeln!(open, "{line}").map_err(|error| file("--csv", path, error))
            }
        }
    }

    /// A line of the table. It makes way for CSV that is printed.
    fn print(&self, progress: &Progress, line: &str) -> Result<(), Error> {
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

//! The files that are written at the end. They are opened at the start, so that an error is reported
//! before the run.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use stoker_shared::cli::FileError;

use crate::{
    cli::OutputArgs,
    error::Error,
    report::{csv_file::CsvFile, json, page, summary::Summary, table},
};

/// A file that is written at the end.
pub(super) struct OutputFile {
    flag: &'static str,
    path: PathBuf,
    file: File,
}

impl OutputFile {
    /// Opens the file that a flag names. Its old content is kept until there is a new one.
    pub(super) fn open(flag: &'static str, path: &Path) -> Result<Self, Error> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = file.map_err(FileError::at(flag, path))?;
        Ok(Self { flag, path: path.to_owned(), file })
    }

    /// Replaces the content.
    pub(super) fn write(self, write: impl FnOnce(File) -> io::Result<()>) -> Result<(), Error> {
        let Self { flag, path, file } = self;
        Ok(file.set_len(0).and_then(|()| write(file)).map_err(FileError::at(flag, path))?)
    }
}

/// The files of the results.
pub(super) struct Outputs {
    print_json: bool,
    json: Option<OutputFile>,
    html: Option<OutputFile>,
    /// Rows of requests, which are written while the load runs.
    pub csv: Option<(PathBuf, CsvFile)>,
}

impl Outputs {
    /// Opens the files that flags name.
    pub(super) fn open(args: &OutputArgs) -> Result<Self, Error> {
        let open = |flag, path: &Path| OutputFile::open(flag, path);
        let print_json = args.json.as_deref() == Some(Path::new("-"));
        let json = args.json.as_deref().filter(|_| !print_json);
        let csv = |path: &PathBuf| {
            let file = File::create(path).map_err(FileError::at("--csv", path))?;
            Ok::<_, Error>((path.clone(), CsvFile::new(file)))
        };
        Ok(Self {
            print_json,
            json: json.map(|path| open("--json", path)).transpose()?,
            html: args.html.as_deref().map(|path| open("--html", path)).transpose()?,
            csv: args.csv.as_ref().map(csv).transpose()?,
        })
    }

    /// Prints and writes the results. Returns exit code 1 if they are not good.
    pub(super) fn finish(self, summary: &Summary) -> Result<ExitCode, Error> {
        if let Some((path, csv)) = self.csv {
            csv.end().map_err(FileError::at("--csv", path))?;
        }
        let object = json::text(summary)?;
        if let Some(html) = self.html {
            let page = page::html(summary)?;
            html.write(|mut file| file.write_all(page.as_bytes()))?;
        }
        if let Some(json) = self.json {
            json.write(|mut file| file.write_all(object.as_bytes()))?;
        }
        let text = if self.print_json { object } else { table::table(summary) };
        match io::stdout().write_all(text.as_bytes()) {
            // A closed pipe is not an error.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        }
        Ok(if summary.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

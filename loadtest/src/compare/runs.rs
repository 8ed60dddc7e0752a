//! The runs of a side, and whether two sides can be compared.

use std::path::PathBuf;

use serde_json::Value;

use crate::{
    error::Error,
    report::{
        format::plural,
        summary::{Summary, VERSION},
    },
};

/// Keys of the configuration that may differ: where it ran, and how it was verified.
const MAY_DIFFER: [&str; 7] =
    ["target", "endpoint", "connections", "seed", "warm_up", "verify", "expect"];

/// The runs of a side.
pub(super) struct Side {
    /// Where they are.
    paths: Vec<PathBuf>,
    /// The runs. Not empty.
    pub runs: Vec<Summary>,
}

impl Side {
    /// Reads the files of a side, which must be runs of the same kind.
    pub(super) fn read(paths: &[PathBuf]) -> Result<Self, Error> {
        let runs = paths.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let side = Self { paths: paths.to_vec(), runs };
        if side.runs.is_empty() {
            return Err(Error::Usage("there is no file to compare".into()));
        }
        for i in 1..side.runs.len() {
            side.check_pair(0, &side, i)?;
        }
        Ok(side)
    }

    /// Fails if the runs of `other` are of another kind.
    pub(super) fn check_like(&self, other: &Self) -> Result<(), Error> {
        self.check_pair(0, other, 0)
    }

    /// Returns what the side is, in one line.
    pub(super) fn describe(&self) -> String {
        let run = &self.runs[0];
        let paths: Vec<_> = self.paths.iter().map(|path| path.display().to_string()).collect();
        let requests: u64 = self.runs.iter().map(|run| run.requests.sent).sum();
        format!(
            "{} ({}, {}, {} at {})",
            paths.join(", "),
            plural(self.runs.len() as u64, "run"),
            plural(requests, "request"),
            run.model,
            run.config.endpoint
        )
    }

    /// Returns why its results may be misleading.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> {
        self.paths.iter().zip(&self.runs).flat_map(|(path, run)| {
            let path = path.display();
            let spoiled = run.driver.spoiled.as_ref().map(|why| format!("({path}): {why}"));
            let interrupted =
                run.interrupted.then(|| format!("({path}) was ended early by a signal"));
            spoiled.into_iter().chain(interrupted)
        })
    }

    fn check_pair(&self, mine: usize, other: &Self, theirs: usize) -> Result<(), Error> {
        let (a, b) = (&self.runs[mine], &other.runs[theirs]);
        let mut differences = differences(a, b)?;
        if differences.is_empty() {
            return Ok(());
        }
        let more = differences.len().saturating_sub(3);
        differences.truncate(3);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        Err(Error::Usage(format!(
            "{} and {} are unlike runs: {}{more}; compare them anyway with --unlike",
            self.paths[mine].display(),
            other.paths[theirs].display(),
            differences.join(", ")
        )))
    }
}

fn read(path: &PathBuf) -> Result<Summary, Error> {
    let wrong = |why: String| Error::Usage(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let hint = "stoker-loadtest --json writes such a file";
    // Versions may have other fields, so the version is read before them.
    let version = serde_json::from_str::<Value>(&text)
        .map_err(|error| wrong(format!("line {}: {error}; {hint}", error.line())))?
        .get("version")
        .and_then(Value::as_u64);
    match version {
        Some(version) if version == u64::from(VERSION) => {}
        Some(version) => {
            return Err(wrong(format!(
                "has version {version} of the format; this program reads {VERSION}, so run the load test \
                 again"
            )));
        }
        None => return Err(wrong(format!("has no version; {hint}"))),
    }
    serde_json::from_str(&text)
        .map_err(|error| wrong(format!("line {}: {error}; {hint}", error.line())))
}

/// Returns what differs between two configurations, each as `key: a, b`.
fn differences(a: &Summary, b: &Summary) -> Result<Vec<String>, Error> {
    let config = |run: &Summary| serde_json::to_value(&run.config).map_err(std::io::Error::from);
    let (first, second) = (config(a)?, config(b)?);
    let keys = first.as_object().into_iter().flat_map(serde_json::Map::keys);
    let differ = keys
        .filter(|key| !MAY_DIFFER.contains(&key.as_str()) && first[*key] != second[*key])
        .map(|key| format!("{key} is {} and {}", first[key], second[key]));
    let model = (a.model != b.model).then(|| format!("model is {:?} and {:?}", a.model, b.model));
    Ok(model.into_iter().chain(differ).collect())
}

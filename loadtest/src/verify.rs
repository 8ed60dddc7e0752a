//! Compares responses with those of an undisturbed run, by their digests.

mod digest;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};
use stoker_shared::cli::FileError;

use crate::{
    error::Error,
    requests::plan::Plan,
    targets::outcome::{CallEnd, CallOutcome, Completion, Finish, ReceivedResponse},
};
pub use digest::Digest;

/// Number of characters of a response that are stored, to show differences.
const EXCERPT_LENGTH: usize = 60;
/// Maximum number of mismatches that are described. All are counted.
const MAX_MISMATCHES: usize = 20;

/// The stored data of a response: a line of the file that `--save-digests` writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestEntry {
    /// Index of the request.
    pub index: u64,
    /// Seed of the request.
    pub seed: u64,
    /// Digest of the request.
    pub request: Digest,
    /// Digest of the response.
    pub response: Digest,
    /// Excerpt of the response.
    #[serde(flatten)]
    pub excerpt: ResponseExcerpt,
}

/// The readable excerpt of a response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseExcerpt {
    /// Number of tokens.
    pub tokens: u32,
    /// Finish reason.
    pub finish: Finish,
    /// Start of the text.
    pub text: String,
}

impl ResponseExcerpt {
    fn new(response: &ReceivedResponse, completion: &Completion) -> Self {
        Self {
            tokens: response.tokens,
            finish: completion.finish,
            text: response.text.chars().take(EXCERPT_LENGTH).collect(),
        }
    }
}

/// Complete responses by the index of their request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Digests(BTreeMap<u64, DigestEntry>);

impl Digests {
    /// Stores the digest of a response, if it is complete.
    pub fn record(&mut self, plan: &Plan, outcome: &CallOutcome) {
        let CallOutcome { index, response, end: CallEnd::Complete(end), .. } = outcome else {
            return;
        };
        let entry = DigestEntry {
            index: *index,
            seed: plan.seed_of(*index),
            request: Digest::of_request(&plan.request(*index)),
            response: Digest::of_response(&response.ids, &response.text, end.finish),
            excerpt: ResponseExcerpt::new(response, end),
        };
        self.0.insert(*index, entry);
    }

    /// Returns the number of responses.
    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// Returns whether there are no responses.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes one JSON object per line, in the order of the requests.
    pub fn write(&self, file: File) -> io::Result<()> {
        let mut out = BufWriter::new(file);
        for entry in self.0.values() {
            serde_json::to_writer(&mut out, entry)?;
            writeln!(out)?;
        }
        out.flush()
    }

    /// Reads a file that `write` has written. It must contain all requests from the first to the
    /// last one.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let flag = "--expect";
        let file = File::open(path).map_err(FileError::at(flag, path))?;
        let mut entries = BTreeMap::new();
        for (number, line) in BufReader::new(file).lines().enumerate() {
            let line = line.map_err(FileError::at(flag, path))?;
            let error = |message: String| {
                let hint = "--save-digests writes such a file";
                Error::Usage(format!(
                    "{flag} {}, line {}: {message}; {hint}",
                    path.display(),
                    number + 1
                ))
            };
            let entry: DigestEntry =
                serde_json::from_str(&line).map_err(|e| error(e.to_string()))?;
            if entry.index != number as u64 {
                return Err(error(format!("the line has request {}, not {number}", entry.index)));
            }
            entries.insert(entry.index, entry);
        }
        if entries.is_empty() {
            return Err(Error::Usage(format!("{flag} {}: has no digest", path.display())));
        }
        Ok(Self(entries))
    }

    /// Fails unless the digests belong to the first `requests` requests of `plan`.
    pub fn check(&self, plan: &Plan, requests: u64, path: &Path) -> Result<(), Error> {
        let flag = "--expect";
        let available = self.len();
        if requests > available {
            return Err(Error::Usage(format!(
                "--requests {requests}: {flag} {} has {available}",
                path.display()
            )));
        }
        let differs =
            |entry: &&DigestEntry| entry.request != Digest::of_request(&plan.request(entry.index));
        match self.0.values().take_while(|entry| entry.index < requests).find(differs) {
            None => Ok(()),
            Some(entry) => Err(Error::Usage(format!(
                "{flag} {}: request {} differs; prompts, lengths, model, temperature and seed must \
                 be those of the run that saved the file",
                path.display(),
                entry.index
            ))),
        }
    }
}

/// Compares responses with expected ones.
#[derive(Debug)]
pub struct Comparison {
    expected: Digests,
    verdict: Verdict,
}

/// The result of a comparison.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// Number of responses that are as expected.
    pub matched: u64,
    /// Number of responses that are complete and differ.
    pub mismatched: u64,
    /// Number of requests without a complete response.
    pub missing: u64,
    /// The first mismatches, by index.
    pub mismatches: Vec<Mismatch>,
}

/// A response that differs from the expected one.
#[derive(Debug, Serialize, Deserialize)]
pub struct Mismatch {
    /// Index of the request.
    pub index: u64,
    /// Seed of the request.
    pub seed: u64,
    /// The worker that served the request.
    pub worker: String,
    /// The expected response.
    pub expected: ResponseExcerpt,
    /// The received response.
    pub actual: ResponseExcerpt,
}

impl Comparison {
    /// Creates a comparison with these responses.
    pub fn new(expected: Digests) -> Self {
        Self { expected, verdict: Verdict::default() }
    }

    /// Compares a response. A failed request is counted as missing in the end.
    pub fn add(&mut self, outcome: &CallOutcome) {
        let CallOutcome { index, response, end: CallEnd::Complete(end), .. } = outcome else {
            return;
        };
        let Some(expected) = self.expected.0.get(index) else { return };
        if expected.response == Digest::of_response(&response.ids, &response.text, end.finish) {
            self.verdict.matched += 1;
            return;
        }
        self.verdict.mismatched += 1;
        if self.verdict.mismatches.len() < MAX_MISMATCHES {
            self.verdict.mismatches.push(Mismatch {
                index: *index,
                seed: expected.seed,
                worker: response.accepted.as_ref().map(|a| a.worker.clone()).unwrap_or_default(),
                expected: expected.excerpt.clone(),
                actual: ResponseExcerpt::new(response, end),
            });
        }
    }

    /// Returns the verdict on `requests` requests.
    pub fn end(self, requests: u64) -> Verdict {
        let mut verdict = self.verdict;
        verdict.missing = requests.saturating_sub(verdict.matched + verdict.mismatched);
        verdict.mismatches.sort_by_key(|mismatch| mismatch.index);
        verdict
    }
}

impl Verdict {
    /// Returns whether all responses are complete and as expected.
    pub fn is_good(&self) -> bool {
        self.mismatched == 0 && self.missing == 0
    }
}

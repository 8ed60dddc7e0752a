//! Are answers what they were when nothing disturbed them? Digests of both are compared.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};
use stoker_proto::v1::{FinishReason, Finished};

use crate::{
    call::{Outcome, Partial},
    digest::Digest,
    error::Error,
    plan::Plan,
};

/// Characters of an answer's text that are kept, to show what differs.
const SHOWN: usize = 60;
/// Mismatches that are described; all are counted.
const MAX_MISMATCHES: usize = 20;

/// What is kept of an answer. A line of the file that `--save-digests` writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The number of the request.
    pub index: u64,
    /// What it was sampled with.
    pub seed: u64,
    /// Names the request.
    pub request: Digest,
    /// Names the answer.
    pub answer: Digest,
    /// How it began and how long it was.
    #[serde(flatten)]
    pub shown: Shown,
}

/// What a person is shown of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// Its length.
    pub tokens: u32,
    /// `stop` or `length`.
    pub finish: Finish,
    /// How it begins.
    pub text: String,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// By itself.
    Stop,
    /// It was long enough.
    Length,
}

impl Shown {
    fn new(answer: &Partial, end: &Finished) -> Self {
        Self {
            tokens: u32::try_from(answer.ids.len()).unwrap_or(u32::MAX),
            finish: if end.reason() == FinishReason::Stop { Finish::Stop } else { Finish::Length },
            text: answer.text.chars().take(SHOWN).collect(),
        }
    }
}

/// Complete answers by the number of their request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Digests(BTreeMap<u64, Entry>);

impl Digests {
    /// Keeps what is needed of an answer, if it is complete.
    pub fn record(&mut self, plan: &Plan, outcome: &Outcome) {
        let Ok(end) = &outcome.end else { return };
        let Outcome { index, answer, .. } = outcome;
        let entry = Entry {
            index: *index,
            seed: plan.seed_of(*index),
            request: Digest::of_request(&plan.request(*index)),
            answer: Digest::of_answer(&answer.ids, &answer.text, end.reason()),
            shown: Shown::new(answer, end),
        };
        self.0.insert(*index, entry);
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes a JSON object a line, in the order of the requests.
    pub fn write(&self, file: File) -> io::Result<()> {
        let mut out = BufWriter::new(file);
        for entry in self.0.values() {
            serde_json::to_writer(&mut out, entry)?;
            writeln!(out)?;
        }
        out.flush()
    }

    /// Reads what `write` wrote: every request from the first to some last one.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let flag = "--expect";
        let file = File::open(path).map_err(Error::file(flag, path))?;
        let mut entries = BTreeMap::new();
        for (number, line) in BufReader::new(file).lines().enumerate() {
            let line = line.map_err(Error::file(flag, path))?;
            let wrong = |what: String| {
                let hint = "--save-digests writes such a file";
                Error::Usage(format!(
                    "{flag} {}, line {}: {what}; {hint}",
                    path.display(),
                    number + 1
                ))
            };
            let entry: Entry = serde_json::from_str(&line).map_err(|e| wrong(e.to_string()))?;
            if entry.index != number as u64 {
                return Err(wrong(format!("it is request {}, not {number}", entry.index)));
            }
            entries.insert(entry.index, entry);
        }
        if entries.is_empty() {
            return Err(Error::Usage(format!("{flag} {}: holds no digest", path.display())));
        }
        Ok(Self(entries))
    }

    /// Fails unless they belong to the first `requests` requests of `plan`.
    pub fn check(&self, plan: &Plan, requests: u64, path: &Path) -> Result<(), Error> {
        let flag = "--expect";
        let known = self.len();
        if requests > known {
            return Err(Error::Usage(format!(
                "--requests {requests}: {flag} {} holds {known}",
                path.display()
            )));
        }
        let differs =
            |entry: &&Entry| entry.request != Digest::of_request(&plan.request(entry.index));
        match self.0.values().take_while(|entry| entry.index < requests).find(differs) {
            None => Ok(()),
            Some(entry) => Err(Error::Usage(format!(
                "{flag} {}: request {} is another one there; prompts, lengths, model, temperature and \
                 seed must be those that it was saved with",
                path.display(),
                entry.index
            ))),
        }
    }
}

/// Compares answers with those that are expected.
#[derive(Debug)]
pub struct Comparison {
    expected: Digests,
    verdict: Verdict,
}

/// What a comparison came to.
#[derive(Debug, Default, Serialize)]
pub struct Verdict {
    /// Answers that are as expected.
    pub matched: u64,
    /// Answers that are complete and differ.
    pub mismatched: u64,
    /// Answers that did not come, or not to their end.
    pub missing: u64,
    /// The first mismatches by number.
    pub mismatches: Vec<Mismatch>,
}

/// An answer that is not what it was.
#[derive(Debug, Serialize)]
pub struct Mismatch {
    /// The number of its request.
    pub index: u64,
    /// What it was sampled with.
    pub seed: u64,
    /// Who answered.
    pub worker: String,
    /// What was expected.
    pub expected: Shown,
    /// What came.
    pub actual: Shown,
}

impl Comparison {
    /// Expects these.
    pub fn new(expected: Digests) -> Self {
        Self { expected, verdict: Verdict::default() }
    }

    /// Compares one more. One that failed is missing in the end.
    pub fn add(&mut self, outcome: &Outcome) {
        let Ok(end) = &outcome.end else { return };
        let Outcome { index, answer, .. } = outcome;
        let Some(expected) = self.expected.0.get(index) else { return };
        if expected.answer == Digest::of_answer(&answer.ids, &answer.text, end.reason()) {
            self.verdict.matched += 1;
            return;
        }
        self.verdict.mismatched += 1;
        if self.verdict.mismatches.len() < MAX_MISMATCHES {
            self.verdict.mismatches.push(Mismatch {
                index: *index,
                seed: expected.seed,
                worker: answer.accepted.as_ref().map(|a| a.worker.clone()).unwrap_or_default(),
                expected: expected.shown.clone(),
                actual: Shown::new(answer, end),
            });
        }
    }

    /// The verdict on `requests` of them.
    pub fn end(self, requests: u64) -> Verdict {
        let mut verdict = self.verdict;
        verdict.missing = requests.saturating_sub(verdict.matched + verdict.mismatched);
        verdict.mismatches.sort_by_key(|mismatch| mismatch.index);
        verdict
    }
}

impl Verdict {
    /// Whether every answer came and is as expected.
    pub fn is_good(&self) -> bool {
        self.mismatched == 0 && self.missing == 0
    }
}

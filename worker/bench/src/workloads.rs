//! Everything that `bench` can measure.
//!
//! A workload is one file: its flags, the cases that follow from them, the keys that it adds to a
//! row, and the measurement itself. To add one, write the file and add it to [`Workloads`] and to
//! [`Workloads::all`]; nothing else knows workloads by name.

mod case;
mod decode;
mod naive;
mod options;
mod prefill_interference;
mod shared_prefix;
mod soak;
mod speculation;

use clap::Args;
use stoker_loader::ModelSource;

pub(crate) use case::Case;
use decode::Decode;
use naive::Naive;
pub(crate) use options::Options;
use prefill_interference::PrefillInterference;
use shared_prefix::SharedPrefix;
use soak::Soak;
use speculation::Speculation;

use crate::{
    Error,
    harness::{Machine, Measurement},
    models::{Format, Target},
};

/// A thing to measure. Its fields are its flags.
pub(crate) trait Workload {
    /// Name, which jobs carry to their process.
    fn name(&self) -> &'static str;

    /// The flag that selects it, if it is given.
    fn selected_by(&self) -> Option<&'static str>;

    /// Rejects flags that clap cannot check, for a model of `model`, whether it is selected or not.
    fn check(&self, _options: &Options, _model: &ModelSource) -> Result<(), Error> {
        Ok(())
    }

    /// Returns the cases to measure, in order.
    fn cases(&self, options: &Options, targets: &[Target]) -> Result<Vec<Case>, Error>;

    /// Returns its rows of `--ablation`, in order.
    fn ablation(&self, _options: &Options, _targets: &[Target]) -> Result<Vec<Case>, Error> {
        Ok(Vec::new())
    }

    /// Whether the text must be predictable, which that of random weights is not.
    fn needs_text(&self) -> bool {
        false
    }

    /// Formats of random weights, if `--format` is not given.
    fn formats(&self, _options: &Options) -> &'static [Format] {
        &[Format::Gguf]
    }

    /// Runs of each case, if `--runs` is not given.
    fn runs(&self, _options: &Options) -> u32 {
        1
    }

    /// Whether the rows of a case are repetitions, of which the median counts.
    fn repeats(&self) -> bool {
        true
    }

    /// Columns that the table has in addition.
    fn columns(&self, _options: &Options) -> Columns {
        Columns::None
    }

    /// The keys that only its rows have, with a description.
    fn keys(&self) -> &'static [Key] {
        &[]
    }

    /// Examples for `bench --help`: what is measured, and the flags.
    fn examples(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// Measures a case.
    fn measure(&self, case: &Case, machine: &mut Machine) -> Result<Vec<Measurement>, Error>;
}

/// A key of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    /// The key, in JSON and in CSV.
    pub(crate) name: &'static str,
    /// What `bench --help` says of it.
    pub(crate) help: &'static str,
}

/// Columns of a table, by what a row is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Columns {
    /// No columns.
    None,
    /// Decode rate over the first row of the same format.
    OverFirst(&'static str),
    /// Decode rate over the previous and over the first row of the same format.
    OverPreviousAndFirst,
    /// Time to first token over the first row of the same format.
    TtftOverFirst(&'static str),
    /// Values of the row: the names of the columns, and the keys.
    Values([(&'static str, &'static str); 2]),
}

/// The flags of all workloads.
#[derive(Debug, Clone, Args)]
pub(crate) struct Workloads {
    #[command(flatten)]
    naive: Naive,
    #[command(flatten)]
    decode: Decode,
    #[command(flatten)]
    soak: Soak,
    #[command(flatten)]
    shared_prefix: SharedPrefix,
    #[command(flatten)]
    prefill_interference: PrefillInterference,
    #[command(flatten)]
    speculation: Speculation,
}

impl Workloads {
    /// Returns all workloads, in the order of their rows of `--ablation` and of their keys.
    pub(crate) fn all(&self) -> [&dyn Workload; 6] {
        [
            &self.naive,
            &self.decode,
            &self.soak,
            &self.shared_prefix,
            &self.prefill_interference,
            &self.speculation,
        ]
    }

    /// Returns the workload that the flags select, by default decoding.
    pub(crate) fn selected(&self) -> &dyn Workload {
        let selected = self.all().into_iter().find(|workload| workload.selected_by().is_some());
        selected.unwrap_or(&self.decode)
    }

    /// Returns the workload with a name.
    pub(crate) fn named(&self, name: &str) -> Option<&dyn Workload> {
        self.all().into_iter().find(|workload| workload.name() == name)
    }

    /// Returns the keys that rows of some workloads have, in order.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.all().into_iter().flat_map(|workload| workload.keys()).copied().collect()
    }
}

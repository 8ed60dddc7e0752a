//! Configuration files of the router and of the worker.
//!
//! Must hold: no panic; memory is at most 16 MiB and 256 bytes for each byte of the file; a printed
//! configuration is accepted and prints the same values; each error has the line that it is about.
#![no_main]

use clap::{Args, Command};
use libfuzzer_sys::{Corpus, fuzz_target};
use stoker_fuzz::bounded;
use stoker_router::RouterConfig;
use stoker_shared::config::fuzz::print;
use stoker_worker::WorkerConfig;

fuzz_target!(|data: &[u8]| -> Corpus {
    let Ok(text) = std::str::from_utf8(data) else { return Corpus::Reject };
    for command in [router, worker] {
        match bounded((16 << 20) + 256 * data.len(), || print(command(), text)) {
            Ok(printed) => {
                let again = print(command(), &printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
                assert_eq!(values(&again), values(&printed));
            }
            Err(errors) => check_errors(&errors, text),
        }
    }
    Corpus::Keep
});

fn router() -> Command {
    RouterConfig::augment_args(Command::new("stoker-router"))
}

fn worker() -> Command {
    WorkerConfig::augment_args(Command::new("stoker-worker"))
}

/// Returns the options without comments, which name the source of each.
fn values(printed: &str) -> Vec<&str> {
    printed.lines().filter(|line| !line.starts_with('#')).collect()
}

fn check_errors(errors: &str, text: &str) {
    let Some(first) = errors.strip_prefix("fuzz.toml:") else {
        // Of options that contradict each other, each is valid.
        assert!(errors.starts_with("error: "), "{errors}");
        return;
    };
    let line: Option<usize> = first.split(':').next().and_then(|line| line.parse().ok());
    let lines = 1 + text.matches('\n').count();
    assert!(line.is_some_and(|line| (1..=lines).contains(&line)), "{errors}");
}

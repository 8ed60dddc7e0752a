//! Tests whose dependencies a machine may lack report that they are skipped, or fail if everything
//! is required. Tests of several packages include this file.
#![allow(dead_code, unreachable_pub, reason = "not every test needs everything")]

use std::{
    collections::BTreeSet,
    env,
    ffi::OsStr,
    fmt::Display,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
};

/// Turns every absence into a failure, unless empty or 0. `.ci/run` and `.ci/full` set it.
const REQUIRE_ALL: &str = "STOKER_TEST_REQUIRE_ALL";

/// Reports that a test cannot run because `what` is absent; `remedy` says how to get it. The caller
/// then returns.
///
/// # Panics
/// If `STOKER_TEST_REQUIRE_ALL` is set.
#[track_caller]
pub fn absent(what: impl Display, remedy: impl Display) {
    let required = |value: &OsStr| !value.is_empty() && value != "0";
    if env::var_os(REQUIRE_ALL).is_some_and(|value| required(&value)) {
        panic!("{what} is absent, and {REQUIRE_ALL} is set: {remedy}");
    }
    skip(format_args!("{what} is absent: {remedy}"));
}

/// Prints, once per test, that the test skips something and why. Written directly to standard
/// error, since the captured output of a passing test is not shown.
pub fn skip(why: impl Display) {
    static PRINTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let line = format!("SKIPPED: {}: {why}", thread::current().name().unwrap_or("a test"));
    if PRINTED.lock().unwrap_or_else(PoisonError::into_inner).insert(line.clone()) {
        // A closed standard error is not an error.
        let _ = writeln!(io::stderr(), "{line}");
    }
}

/// Returns the path of a file or folder of test data below `STOKER_TEST_DATA`, or below
/// `../shared/data` as seen from the root of the project. Returns `None`, and reports it, if it is
/// absent.
#[track_caller]
pub fn shared_data(path: &str) -> Option<PathBuf> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = package.ancestors().find(|folder| folder.join("Cargo.lock").exists());
    let default = root.unwrap_or(package).join("../shared/data");
    let found = env::var_os("STOKER_TEST_DATA").map_or(default, PathBuf::from).join(path);
    if !found.exists() {
        absent(found.display(), "set STOKER_TEST_DATA to the folder of test data");
        return None;
    }
    Some(found)
}

//! Finds the shared test data, or says why a test has nothing to do.

use std::path::PathBuf;

/// The path of a file or folder of the shared test data; `None`, said on stderr, where it is absent.
pub(crate) fn shared_data(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("STOKER_TEST_DATA").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
        PathBuf::from,
    );
    let found = root.join(path);
    if found.exists() {
        return Some(found);
    }
    eprintln!("skipped: {} does not exist; set STOKER_TEST_DATA", found.display());
    None
}

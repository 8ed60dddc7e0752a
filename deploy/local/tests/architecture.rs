//! The invariants of the code map that can be read off the files.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn manifest(package: &str) -> String {
    fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap()
}

/// Every `.rs` file below `folder`, build outputs left out.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}

#[test]
fn crates_know_only_whom_they_may() {
    for (package, strangers) in [
        ("proto", &["stoker-"][..]),
        ("fair", &["stoker-", "tokio", "tonic"]),
        ("shared", &["stoker-router", "stoker-worker", "stoker-engine", "stoker-ops", "burn"]),
        ("router", &["stoker-worker", "stoker-engine", "stoker-ops", "burn", "tokenizers"]),
        ("worker", &["stoker-router", "burn"]),
        (
            "worker/engine",
            &["stoker-router", "stoker-worker", "stoker-shared", "stoker-proto", "tokio", "tonic"],
        ),
        ("worker/ops", &["stoker-", "tokio", "tonic"]),
        ("loadtest", &["stoker-router", "stoker-worker", "stoker-engine", "stoker-ops", "burn"]),
    ] {
        let manifest = manifest(package);
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or_default();
        for stranger in strangers {
            let known = dependencies.lines().find(|line| line.starts_with(stranger));
            assert_eq!(known, None, "{package} must not know {stranger}");
        }
    }
}

#[test]
fn kernels_and_unsafe_code_stay_in_ops() {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    assert!(files.len() > 100, "{} files is not all of them", files.len());
    let ops = root().join("worker/ops");
    for file in files.iter().filter(|f| !f.starts_with(&ops)) {
        let text = fs::read_to_string(file).unwrap();
        // Written apart, so that this file does not find itself.
        for word in [concat!("uns", "afe {"), concat!("uns", "afe fn"), concat!("use cube", "cl")] {
            assert!(!text.contains(word), "{} has `{word}`", file.display());
        }
    }
}

#[test]
fn the_scheduler_is_pure() {
    for file in [
        "scheduler.rs",
        "scheduler/entry.rs",
        "scheduler/estimate.rs",
        "scheduler/pace.rs",
        "scheduler/queue.rs",
        "scheduler/prefix.rs",
        "scheduler/room.rs",
        "blocks.rs",
        "cost.rs",
    ] {
        let text = fs::read_to_string(root().join("worker/engine/src").join(file)).unwrap();
        for word in ["burn::", "Tensor", "Instant", "async ", "thread::"] {
            assert!(!text.contains(word), "{file} has {word}");
        }
    }
}

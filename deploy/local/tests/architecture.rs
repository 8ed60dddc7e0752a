//! The invariants of the code map that can be read off the files.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The manifest in `folder`: of a package, or of the workspace.
fn manifest(folder: &str) -> Table {
    fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap().parse().unwrap()
}

/// The packages that a manifest lists as normal, build and dev dependencies, for any platform.
fn dependencies(manifest: &Table) -> BTreeSet<String> {
    let platforms = manifest.get("target").and_then(Value::as_table);
    let platforms = platforms.into_iter().flat_map(Table::values).filter_map(Value::as_table);
    let kinds = ["dependencies", "build-dependencies", "dev-dependencies"];
    let tables =
        [manifest].into_iter().chain(platforms).flat_map(|of| kinds.map(|kind| of.get(kind)));
    let listed = tables.flatten().filter_map(Value::as_table).flatten();
    listed.map(|(name, how)| package(name, how)).collect()
}

/// The package behind a dependency, which may go by another name.
fn package(name: &str, how: &Value) -> String {
    how.get("package").and_then(Value::as_str).unwrap_or(name).to_owned()
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

/// Prefixes of package names that the package in a folder must not depend on.
const STRANGERS: [(&str, &[&str]); 10] = [
    ("proto", &["stoker-"]),
    ("shared", &["stoker-router", "stoker-worker", "stoker-engine", "stoker-ops", "burn"]),
    ("fair", &["stoker-", "tokio", "tonic"]),
    ("router", &["stoker-worker", "stoker-engine", "stoker-ops", "burn", "tokenizers"]),
    ("worker", &["stoker-router", "burn"]),
    (
        "worker/engine",
        &["stoker-router", "stoker-worker", "stoker-shared", "stoker-proto", "tokio", "tonic"],
    ),
    ("worker/ops", &["stoker-", "tokio", "tonic"]),
    ("worker/storyteller", &["stoker-", "tokio", "tonic"]),
    ("loadtest", &["stoker-router", "stoker-worker", "stoker-engine", "stoker-ops", "burn"]),
    ("deploy/local", &["stoker-engine", "stoker-ops", "burn"]),
];

#[test]
fn crates_know_only_whom_they_may() {
    let workspace = manifest("");
    let members = workspace["workspace"]["members"].as_array().unwrap();
    let members: BTreeSet<_> = members.iter().map(|member| member.as_str().unwrap()).collect();
    let ruled: BTreeSet<_> = STRANGERS.iter().map(|(folder, _)| *folder).collect();
    assert_eq!(members, ruled, "members of the workspace, and folders that STRANGERS names");
    // A member may take a dependency from the workspace, which may have renamed it.
    let shared = workspace["workspace"]["dependencies"].as_table().unwrap();
    for (name, how) in shared {
        assert_eq!(package(name, how), *name, "the workspace renames a dependency");
    }
    for (folder, strangers) in STRANGERS {
        let dependencies = dependencies(&manifest(folder));
        assert!(!dependencies.is_empty(), "{folder} depends on nothing");
        for stranger in strangers {
            let known = dependencies.iter().find(|name| name.starts_with(stranger));
            assert_eq!(known, None, "{folder} must not know {stranger}");
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

/// The text of a file without its test module, which must be the last item in it.
fn without_tests(text: &str) -> &str {
    let Some((code, tests)) = text.split_once("#[cfg(test)]\nmod tests {\n") else { return text };
    let end = tests.find("\n}\n").map(|end| end + 3);
    assert_eq!(end, Some(tests.len()), "something follows the tests: {tests}");
    code
}

#[test]
fn the_scheduler_is_pure() {
    let engine = root().join("worker/engine/src");
    let mut files = Vec::new();
    for module in ["scheduler", "blocks", "cost"] {
        files.push(engine.join(module).with_extension("rs"));
        let folder = engine.join(module);
        if folder.exists() {
            sources(&folder, &mut files);
        }
    }
    files.retain(|file| !file.ends_with("tests.rs"));
    assert!(files.len() >= 12, "{} files is not all of them", files.len());
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for word in ["burn::", "Tensor", "Instant", "SystemTime", "async ", "thread::"] {
            assert!(!without_tests(&text).contains(word), "{} has {word}", file.display());
        }
    }
}

/// Files outside of tests that may make a status by hand, since each is the client's side of a call.
const CLIENTS: [&str; 3] =
    ["shared/src/client.rs", "router/src/pool/candidate.rs", "shared/src/serve/backpressure.rs"];

/// The sources of the programs, without their tests.
fn programs() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for package in
        ["shared", "fair", "router", "worker", "worker/engine", "loadtest", "deploy/local"]
    {
        sources(&root().join(package).join("src"), &mut files);
    }
    assert!(files.len() > 250, "{} files is not all of them", files.len());
    let of = |file: PathBuf| {
        let name = file.strip_prefix(root()).unwrap().display().to_string();
        (name, fs::read_to_string(&file).unwrap())
    };
    files.into_iter().map(of).filter(|(name, _)| !name.ends_with("tests.rs")).collect()
}

#[test]
fn errors_become_a_status_in_one_place() {
    let is_made = |code: &str| {
        code.match_indices("Status::").any(|(at, _)| {
            let name = code[at + 8..].split('(').next().unwrap();
            !code[..at].ends_with(char::is_alphanumeric)
                && (name == "new" || name.starts_with("with_") || tonic_codes().contains(&name))
        })
    };
    let mut made = BTreeSet::new();
    for (name, text) in programs() {
        if name != "shared/src/error/status.rs" && is_made(without_test_module(&text)) {
            made.insert(name);
        }
    }
    assert_eq!(made, CLIENTS.map(str::to_owned).into());
}

fn tonic_codes() -> [&'static str; 16] {
    [
        "cancelled",
        "unknown",
        "invalid_argument",
        "deadline_exceeded",
        "not_found",
        "already_exists",
        "permission_denied",
        "resource_exhausted",
        "failed_precondition",
        "aborted",
        "out_of_range",
        "unimplemented",
        "internal",
        "unavailable",
        "data_loss",
        "unauthenticated",
    ]
}

/// The text of a file up to its test module.
fn without_test_module(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests").next().unwrap()
}

#[test]
fn no_channel_is_unbounded() {
    for (name, text) in programs() {
        let code = without_test_module(&text);
        for word in ["unbounded_channel", "unbounded(", "mpsc::channel()", "mpsc::Sender::"] {
            // One process measures itself there: what it reports fits into memory by construction.
            let is_bench = name.starts_with("worker/src/bench");
            assert!(is_bench || !code.contains(word), "{name} has `{word}`");
        }
    }
}

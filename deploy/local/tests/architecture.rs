//! Architectural invariants that can be verified from manifests and sources.
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

/// The parsed manifest of the package or workspace in `folder`.
fn manifest(folder: &str) -> Table {
    fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap().parse().unwrap()
}

/// Packages that a manifest lists as normal, build or dev dependencies, for any platform.
fn dependencies(manifest: &Table) -> BTreeSet<String> {
    let platforms = manifest.get("target").and_then(Value::as_table);
    let platforms = platforms.into_iter().flat_map(Table::values).filter_map(Value::as_table);
    let kinds = ["dependencies", "build-dependencies", "dev-dependencies"];
    let tables =
        [manifest].into_iter().chain(platforms).flat_map(|of| kinds.map(|kind| of.get(kind)));
    let listed = tables.flatten().filter_map(Value::as_table).flatten();
    listed.map(|(name, how)| package(name, how)).collect()
}

/// The package of a dependency, which may be renamed.
fn package(name: &str, how: &Value) -> String {
    how.get("package").and_then(Value::as_str).unwrap_or(name).to_owned()
}

/// Adds every `.rs` file below `folder` to `found`, except build outputs.
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
const FORBIDDEN: [(&str, &[&str]); 10] = [
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
fn crates_have_no_forbidden_dependencies() {
    let workspace = manifest("");
    let members = workspace["workspace"]["members"].as_array().unwrap();
    let members: BTreeSet<_> = members.iter().map(|member| member.as_str().unwrap()).collect();
    let listed_folders: BTreeSet<_> = FORBIDDEN.iter().map(|(folder, _)| *folder).collect();
    assert_eq!(members, listed_folders, "members of the workspace, and folders in FORBIDDEN");
    // A member may inherit a dependency from the workspace, which must not rename it.
    let shared = workspace["workspace"]["dependencies"].as_table().unwrap();
    for (name, how) in shared {
        assert_eq!(package(name, how), *name, "the workspace renames a dependency");
    }
    for (folder, forbidden) in FORBIDDEN {
        let dependencies = dependencies(&manifest(folder));
        assert!(!dependencies.is_empty(), "{folder} depends on nothing");
        for package_prefix in forbidden {
            let dependency = dependencies.iter().find(|name| name.starts_with(package_prefix));
            assert_eq!(dependency, None, "{folder} must not depend on {package_prefix}");
        }
    }
}

#[test]
fn kernels_and_unsafe_code_stay_in_ops() {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    assert!(files.len() > 100, "only {} files were found", files.len());
    let ops = root().join("worker/ops");
    for file in files.iter().filter(|f| !f.starts_with(&ops)) {
        let text = fs::read_to_string(file).unwrap();
        // Split, so that this file does not match itself.
        for word in [concat!("uns", "afe {"), concat!("uns", "afe fn"), concat!("use cube", "cl")] {
            assert!(!text.contains(word), "{} has `{word}`", file.display());
        }
    }
}

/// The text of a file without its test module, which must be the file's last item.
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
    assert!(files.len() >= 12, "only {} files were found", files.len());
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for word in ["burn::", "Tensor", "Instant", "SystemTime", "async ", "thread::"] {
            assert!(!without_tests(&text).contains(word), "{} has {word}", file.display());
        }
    }
}

/// Files outside of tests that may make a status by hand, since each is the client's side of a
/// call.
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

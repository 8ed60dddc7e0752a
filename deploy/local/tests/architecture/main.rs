//! Architectural invariants that can be verified from manifests and sources.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod imports;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use imports::Crate;
use serde::Deserialize;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A package of the workspace, as cargo reads its manifest.
#[derive(Debug, Deserialize)]
struct Package {
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

/// A normal, build or dev dependency, for any platform.
#[derive(Debug, Deserialize)]
struct Dependency {
    /// Name of the package, whatever it is renamed to.
    name: String,
}

/// The packages of the workspace by their folder.
fn packages() -> BTreeMap<String, BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    let mut cargo = Command::new(env!("CARGO"));
    let arguments = ["metadata", "--no-deps", "--format-version", "1", "--locked", "--offline"];
    let output = cargo.args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).unwrap();
    let package = |package: Package| {
        let folder = package.manifest_path.parent().unwrap().strip_prefix(root()).unwrap();
        let names = package.dependencies.into_iter().map(|dependency| dependency.name);
        (folder.display().to_string(), names.collect())
    };
    metadata.packages.into_iter().map(package).collect()
}

/// Adds every `.rs` file below `folder` to `found`, except build outputs.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && name != "node_modules" && !name.starts_with('.') {
            sources(&path, found);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}

/// A package by its folder, a package that it depends on, and prefixes of those that it must not
/// depend on.
const DEPENDENCIES: [(&str, &str, &[&str]); 16] = [
    ("proto", "prost", &["stoker-"]),
    (
        "shared",
        "stoker-proto",
        &["stoker-router", "stoker-worker", "stoker-engine", "stoker-ops", "burn"],
    ),
    ("shared/fair-queue", "proptest", &["stoker-", "tokio", "tonic"]),
    (
        "router",
        "stoker-fair-queue",
        &["stoker-worker", "stoker-engine", "stoker-ops", "burn", "tokenizers"],
    ),
    ("worker", "stoker-engine", &["stoker-router", "burn"]),
    (
        "worker/bench",
        "stoker-loader",
        &["stoker-router", "stoker-worker", "stoker-proto", "burn", "tokio", "tonic"],
    ),
    ("worker/chat-template", "minijinja", &["stoker-", "burn", "tokio", "tonic"]),
    (
        "worker/engine",
        "stoker-ops",
        &["stoker-router", "stoker-worker", "stoker-shared", "stoker-proto", "tokio", "tonic"],
    ),
    (
        "worker/loader",
        "stoker-engine",
        &["stoker-router", "stoker-worker", "stoker-proto", "burn", "tokio", "tonic"],
    ),
    ("worker/ops", "burn", &["stoker-", "tokio", "tonic"]),
    ("worker/storyteller", "burn", &["stoker-", "tokio", "tonic"]),
    (
        "loadtest",
        "stoker-shared",
        &["stoker-router", "stoker-worker", "stoker-engine", "stoker-ops", "burn"],
    ),
    ("deploy/local", "stoker-router", &["stoker-engine", "stoker-ops", "burn"]),
    ("client", "stoker-proto", &["stoker-engine", "stoker-ops", "burn"]),
    ("examples/rust", "stoker-client", &["stoker-shared", "stoker-engine", "stoker-ops", "burn"]),
    ("scripts/xtask", "stoker-router", &["stoker-worker", "stoker-engine", "burn"]),
];

#[test]
fn crates_have_no_forbidden_dependencies() {
    let packages = packages();
    let listed: BTreeSet<_> =
        DEPENDENCIES.iter().map(|(folder, ..)| (*folder).to_owned()).collect();
    assert_eq!(packages.keys().cloned().collect::<BTreeSet<_>>(), listed);
    for (folder, known, forbidden) in DEPENDENCIES {
        let dependencies = &packages[folder];
        // A list that is read wrongly would forbid nothing.
        assert!(dependencies.contains(known), "{folder} has {dependencies:?}");
        for prefix in forbidden {
            let dependency = dependencies.iter().find(|name| name.starts_with(prefix));
            assert_eq!(dependency, None, "{folder} must not depend on {prefix}");
        }
    }
}

/// The root files of all crates, with the number of files that are at least read.
const CRATES: [(&str, usize); 14] = [
    ("proto", 3),
    ("shared", 60),
    ("shared/fair-queue", 2),
    ("client", 3),
    ("router", 60),
    ("worker", 20),
    ("worker/bench", 40),
    ("worker/chat-template", 10),
    ("worker/engine", 90),
    ("worker/loader", 7),
    ("worker/ops", 50),
    ("worker/storyteller", 4),
    ("loadtest", 60),
    ("deploy/local", 20),
];

#[test]
fn modules_import_in_one_direction() {
    for (folder, files) in CRATES {
        let found = Crate::read(&root().join(folder).join("src/lib.rs"));
        assert!(found.num_files() >= files, "{folder}: {} files", found.num_files());
        let circles = found.circles();
        assert!(
            circles.is_empty(),
            "{folder} has modules that import from each other: {circles:#?}"
        );
    }
}

#[test]
fn a_circle_is_found_through_folders_and_reexports() {
    let folder = tempfile::tempdir().unwrap();
    let circles = |files: &[(&str, &str)]| {
        for (name, text) in files {
            let file = folder.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        Crate::read(&folder.path().join("lib.rs")).circles()
    };
    let straight = [
        ("lib.rs", "mod a;\nmod b;\npub use a::A;\n"),
        ("a.rs", "mod inner;\npub use inner::A;\npub(crate) struct Seed;\n"),
        // A child may use what its parent defines.
        ("a/inner.rs", "use super::Seed;\npub struct A(Seed);\n"),
        ("b.rs", "pub struct B(crate::A);\n#[cfg(test)]\nmod tests { use crate::a::A; }\n"),
    ];
    assert_eq!(circles(&straight), []);
    // In a path, in a test, in a macro, through a name that the root hands on.
    for (name, text, found) in [
        ("a/inner.rs", "pub struct A;\nfn b() -> crate::b::B { todo!() }\n", true),
        ("a/inner.rs", "pub struct A;\nfn b() { println!(\"{}\", crate::b::B::NAME) }\n", true),
        ("a/inner.rs", "pub struct A;\n#[cfg(test)]\nmod tests { use crate::b::B; }\n", false),
        ("a/inner.rs", "pub struct A;\nuse crate::{b as other};\n", true),
    ] {
        let circles = circles(&[straight[0], straight[1], straight[3], (name, text)]);
        let members = circles.iter().map(|circle| circle.members.join(", ")).collect::<Vec<_>>();
        assert_eq!(members, if found { vec!["a, b"] } else { vec![] }, "{text}");
    }
}

/// The files below `folder` that no module declares, as a name in the file of their parent.
fn undeclared(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    sources(folder, &mut files);
    let roots = ["lib.rs", "main.rs"].map(|name| folder.join(name));
    files.retain(|file| {
        let (parent, name) = (file.parent().unwrap(), file.file_stem().unwrap().to_string_lossy());
        let declares = |text: String| {
            text.lines().any(|line| line.trim_end().ends_with(&format!("mod {name};")))
        };
        let own = parent.with_extension("rs");
        let parents = if parent == folder { &roots[..] } else { std::slice::from_ref(&own) };
        !roots.contains(file)
            && !parents.iter().any(|file| fs::read_to_string(file).is_ok_and(declares))
    });
    files
}

#[test]
fn every_file_is_a_module() {
    for (folder, _) in CRATES {
        let unused = undeclared(&root().join(folder).join("src"));
        assert!(unused.is_empty(), "no module declares {unused:#?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let lost = folder.path().join("lost.rs");
    fs::write(folder.path().join("lib.rs"), "mod kept;\n").unwrap();
    fs::write(folder.path().join("kept.rs"), "// mod lost\n").unwrap();
    fs::write(&lost, "").unwrap();
    assert_eq!(undeclared(folder.path()), [lost]);
}

/// Most lines of a file: more is more than one job.
const MAX_LINES: usize = 450;

#[test]
fn no_file_is_long() {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    let lines = |file: &PathBuf| fs::read_to_string(file).unwrap().lines().count();
    let long: Vec<_> = files
        .iter()
        .map(|file| (lines(file), file.strip_prefix(root()).unwrap().display().to_string()))
        .filter(|(lines, _)| *lines > MAX_LINES)
        .collect();
    assert!(long.is_empty(), "more than {MAX_LINES} lines: {long:#?}");
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

#[test]
fn every_crate_has_the_lints_of_the_workspace() {
    let manifest = |folder: &str| -> toml::Table {
        let text = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        text.parse().unwrap()
    };
    let mut lints = manifest("")["workspace"]["lints"].clone();
    assert_eq!(lints["rust"]["unsafe_code"].as_str(), Some("forbid"));
    let inherits =
        toml::Value::Table([("workspace".to_owned(), true.into())].into_iter().collect());
    for folder in packages().keys().filter(|folder| *folder != "worker/ops") {
        assert_eq!(manifest(folder).get("lints"), Some(&inherits), "{folder}");
    }
    // The crate with unsafe code repeats them, and has its rules for such code besides.
    for (tool, lint, level) in [
        ("rust", "unsafe_code", "allow"),
        ("rust", "unsafe_op_in_unsafe_fn", "deny"),
        ("clippy", "undocumented_unsafe_blocks", "deny"),
    ] {
        lints[tool].as_table_mut().unwrap().insert(lint.to_owned(), level.into());
    }
    assert_eq!(manifest("worker/ops").get("lints"), Some(&lints));
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
    for module in ["scheduler", "kv_cache", "cost"] {
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

/// The sources of the programs, without their tests, and without the codec, which makes a status of
/// what it cannot decode.
fn programs() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for (package, _) in CRATES.iter().filter(|(name, _)| !["proto", "worker/ops"].contains(name)) {
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

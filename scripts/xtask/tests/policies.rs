//! `policies` on a small trace.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Output},
};

fn policies(trace: &Path, arguments: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_xtask"));
    program.arg("policies").arg(trace).args(arguments).output().unwrap()
}

#[test]
fn every_policy_has_a_row_and_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let (trace, plot) = (folder.path().join("trace.jsonl"), folder.path().join("plot.svg"));
    let mut lines = String::new();
    for i in 0..200 {
        let (time, first) = (i * 100, i % 10);
        let request = format!(
            r#"{{"timestamp": {time}, "input_length": 1000, "output_length": 20, "hash_ids": [{first}, {i}]}}"#
        );
        writeln!(lines, "{request}").unwrap();
    }
    fs::write(&trace, lines).unwrap();
    let arguments = ["--workers", "4", "--loads", "0.5", "--plot", plot.to_str().unwrap()];
    let (first, again) = (policies(&trace, &arguments), policies(&trace, &arguments));
    let table = String::from_utf8(first.stdout).unwrap();
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(rows.len() >= 3, "{table}");
    assert_eq!(table.as_bytes(), again.stdout, "simulated time is reproducible");
    let lines = fs::read_to_string(&plot).unwrap().matches("<polyline").count();
    assert_eq!(lines, rows.len());
}

#[test]
fn a_malformed_trace_is_refused_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.jsonl");
    let line = r#"{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1]}"#;
    for (text, expected) in [
        ("", "line 1: the file has no request"),
        ("{}", "line 1: missing field `timestamp`"),
        (line, "line 1: hash_ids has 1 blocks, and 600 tokens of input_length are 2 blocks of 512"),
    ] {
        fs::write(&trace, text).unwrap();
        let output = policies(&trace, &[]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && error.contains(expected), "{error}");
    }
    let output = policies(&trace, &["--workers", "0"]);
    assert_eq!(output.status.code(), Some(2));
}

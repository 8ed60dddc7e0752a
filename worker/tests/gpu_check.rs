//! `stoker-worker gpu-check`, on the CPU, which every machine has and which answers everything that a GPU is asked; or on
//! what STOKER_TEST_DEVICE names.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{fs, process::Command};

use serde_json::Value;

#[test]
fn one_command_checks_measures_and_writes_it_down() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("report");
    let device = std::env::var("STOKER_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    let output = Command::new(env!("CARGO_BIN_EXE_stoker-worker"))
        .args(["gpu-check", "--device", &device, "--random-weights", "tiny", "--context", "128"])
        .arg("--out")
        .arg(&out)
        .arg("--cache")
        .arg(folder.path())
        .output()
        .unwrap();
    let (printed, said) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{said}\n{printed}");
    assert_eq!(fs::read_to_string(out.join("report.md")).unwrap(), printed);
    for title in ["Speed, random weights of tiny", "transformers", "reference", "different ways"] {
        assert!(printed.contains(title), "{title:?} is not in:\n{printed}");
    }

    let report: Value =
        serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
    let class = report["facts"]["class"].as_str().unwrap();
    assert!(class.starts_with(&device), "{class}");
    let all = |key: &str| report[key].as_array().unwrap().clone();
    let operations = all("operations");
    assert!(operations.len() > 40 && operations.iter().all(|check| check["passed"] == true));
    // Four ways, and two more without parts of a GPU, each in f32 and in int8.
    let pairs = all("exactness");
    assert_eq!(pairs.len(), 12);
    assert!(pairs.iter().all(|pair| pair["same"] == true && pair["tokens"] == 8 * 32));
    let decoded = |batch: u64| {
        let row = all("speed").into_iter().find(|r| r["what"] == "int8" && r["batch"] == batch);
        row.unwrap()["decode_tokens_per_second"].as_f64().unwrap()
    };
    assert!([1, 2, 4, 8, 16, 32, 64].into_iter().all(|batch| decoded(batch) > 0.0));
}

#[test]
fn a_folder_that_cannot_be_written_is_known_at_once() {
    let output = Command::new(env!("CARGO_BIN_EXE_stoker-worker"))
        .args(["gpu-check", "--device", "cpu", "--out", "/dev/null/report"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.starts_with("error: --out /dev/null/report: "), "{said}");
}

//! `stoker-worker gpu-check`, on the CPU, which every machine has and on which all of its checks
//! run, or on the device in STOKER_TEST_DEVICE.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{fs, process::Command};

use serde_json::Value;

#[test]
fn one_command_checks_measures_and_writes_reports() {
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
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{stderr}\n{stdout}");
    assert_eq!(fs::read_to_string(out.join("report.md")).unwrap(), stdout);
    for title in ["Speed, random weights of tiny", "transformers", "reference", "different ways"] {
        assert!(stdout.contains(title), "{title:?} is not in:\n{stdout}");
    }

    let report: Value =
        serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
    let class = report["facts"]["class"].as_str().unwrap();
    assert!(class.starts_with(&device), "{class}");
    let all = |key: &str| report[key].as_array().unwrap().clone();
    let operations = all("operations");
    assert!(operations.len() > 40 && operations.iter().all(|check| check["passed"] == true));
    // Four pairs of runs, and two more with GPU features disabled, each in int8, int4 and f32.
    let pairs = all("exactness");
    assert_eq!(pairs.len(), 18);
    assert!(pairs.iter().all(|pair| pair["same"] == true && pair["tokens"] == 8 * 32));
    let decode_rate = |batch: u64| {
        let row = all("speed").into_iter().find(|r| r["what"] == "int8" && r["batch"] == batch);
        row.unwrap()["decode_tokens_per_second"].as_f64().unwrap()
    };
    assert!([1, 2, 4, 8, 16, 32, 64].into_iter().all(|batch| decode_rate(batch) > 0.0));
}

#[test]
fn an_unwritable_output_folder_fails_at_once() {
    let output = Command::new(env!("CARGO_BIN_EXE_stoker-worker"))
        .args(["gpu-check", "--device", "cpu", "--out", "/dev/null/report"])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.starts_with("error: --out /dev/null/report: "), "{stderr}");
}

//! `compare`.

use serde_json::{Value, json};

use crate::support::{Files, Script, Server, alone, run};

/// Writes a run as it would be with all times longer by `factor`, and tokens fewer.
fn slowed(json: &Value, factor: f64) -> Value {
    let mut slowed = json.clone();
    let scale = |value: &mut Value, factor: f64| {
        if let Some(number) = value.as_f64() {
            *value = json!(number * factor);
        }
    };
    for key in ["ttft_seconds", "tpot_seconds", "e2e_seconds"] {
        for quantile in ["p50", "p99"] {
            scale(&mut slowed[key][quantile], factor);
        }
    }
    for key in ["ttft_seconds", "itl_seconds", "e2e_seconds"] {
        for value in slowed["samples"][key].as_array_mut().unwrap() {
            scale(value, factor);
        }
    }
    slowed
}

/// Runs one load, and writes it and changed ones.
async fn files() -> Files {
    let server = Server::new(|_, _| Script::Respond).await;
    let files = Files::new();
    let ran = run(&server, &files, "--requests 400 --concurrency 4").await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    files.write("same.json", &ran.json.to_string());
    files.write("slow.json", &slowed(&ran.json, 2.0).to_string());
    for (name, factor) in [("a1", 1.0), ("a2", 1.02), ("a3", 0.98)] {
        files.write(&format!("{name}.json"), &slowed(&ran.json, factor).to_string());
        files.write(&format!("b{name}.json"), &slowed(&ran.json, 1.3 * factor).to_string());
    }
    let mut unlike = ran.json.clone();
    unlike["config"]["concurrency"] = 8.into();
    files.write("unlike.json", &unlike.to_string());
    let mut old = ran.json.clone();
    old["version"] = 2.into();
    files.write("old.json", &old.to_string());
    let mut damaged = ran.json.clone();
    damaged["requests"]["sent"] = "many".into();
    files.write("damaged.json", &damaged.to_string());
    files.write("broken.json", "{\n  \"version\": 3,\n  oops\n}");
    files.write("other.json", "{\"a\": 1}");
    files.write("empty.json", "");
    files
}

#[tokio::test]
async fn runs_are_compared_with_intervals_and_a_verdict() {
    let files = files().await;
    let compare = async |arguments: &str| {
        let arguments: Vec<_> =
            std::iter::once("compare").chain(arguments.split_whitespace()).collect();
        alone(&arguments, &files.path("")).await
    };
    let (code, out, error) = compare("same.json results.json").await;
    assert_eq!(code, Some(0), "{out}{error}");
    assert!(out.contains("verdict: no difference beyond noise"), "{out}");
    assert!(out.contains("One run on a side"), "{out}");

    let (code, out, error) = compare("same.json slow.json").await;
    assert_eq!(code, Some(1), "{out}{error}");
    let row = out.lines().find(|line| line.starts_with("time to first token, p50")).unwrap();
    assert!(row.contains("+100") && row.ends_with("worse"), "{out}");
    assert!(out.contains("verdict: worse (time to first token, p50"), "{out}");
    let (code, out, _) = compare("slow.json same.json").await;
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("verdict: better (time to first token, p50"), "{out}");

    // Several runs of each show their own noise.
    let (code, out, error) = compare("a1.json,a2.json,a3.json ba1.json,ba2.json,ba3.json").await;
    assert_eq!(code, Some(1), "{out}{error}");
    assert!(out.contains("3 runs") && !out.contains("One run on a side"), "{out}");
    let (code, out, _) = compare("a1.json,a2.json a3.json,a2.json").await;
    assert_eq!(code, Some(0), "{out}");

    let (code, out, error) = compare("same.json unlike.json --unlike").await;
    assert_eq!(code, Some(0), "{out}{error}");
    for (arguments, parts) in [
        ("same.json unlike.json", &["unlike runs", "concurrency is 4 and 8", "--unlike"][..]),
        ("a1.json,unlike.json same.json", &["unlike runs", "a1.json and unlike.json"]),
        ("same.json nowhere.json", &["nowhere.json", "No such file"]),
        ("same.json old.json", &["old.json", "version 2", "reads 3"]),
        ("same.json damaged.json", &["damaged.json", "line 1", "many"]),
        ("same.json broken.json", &["broken.json", "line 3", "--json"]),
        ("same.json other.json", &["other.json", "has no version"]),
        ("same.json empty.json", &["empty.json", "line 1"]),
        ("same.json", &["<NEW>"]),
        ("same.json slow.json --threshold x", &["--threshold", "0.05"]),
    ] {
        let (code, out, error) = compare(arguments).await;
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments}: {error}");
        for part in parts {
            assert!(error.contains(part), "{arguments}: {part:?} is missing: {error}");
        }
    }
}

//! `roofline`: ceilings of this machine and of GPUs, benchmark results compared with them, and
//! errors.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;

use clap::{CommandFactory, Parser};
use serde_json::{Value, json};
use stoker_bench::roofline::{self, Bound, RooflineArgs, WeightFormat};
use stoker_loader::ModelSource;
use stoker_shared::cli::CommandError;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    roofline: RooflineArgs,
}

fn args(line: &str) -> RooflineArgs {
    Cli::try_parse_from(["roofline"].into_iter().chain(line.split_whitespace())).unwrap().roofline
}

#[test]
fn the_defaults_of_flags_and_code_are_equal() {
    assert_eq!(format!("{:?}", args("")), format!("{:?}", RooflineArgs::default()));
    Cli::command().debug_assert();
}

#[test]
fn this_machine_is_measured_and_the_last_run_is_compared_with_the_ceiling() {
    let folder = tempfile::tempdir().unwrap();
    let (last, out) = (folder.path().join("bench.json"), folder.path().join("roofline.json"));
    let row = |run: u64, speed: f64| {
        json!({
            "model": "storyteller", "scenario": "short", "format": "safetensors", "quantize": "none",
            "device": "cpu", "threads": 2, "batch": 8, "context": 64, "run": run,
            "load_seconds": 0.1, "prompt_tokens": 32, "output_tokens": 64, "ttft_seconds": 0.1,
            "tpot_seconds": 0.1, "decode_tokens_per_second": speed,
            "prefill_tokens_per_second": null, "peak_rss_bytes": null,
            "read_rate_bytes_per_second": 1e10, "bandwidth_utilization": 0.5,
        })
    };
    fs::write(&last, json!([row(1, 3.0), row(2, 1.0), row(3, 2.0)]).to_string()).unwrap();
    let args = RooflineArgs {
        model: Some(ModelSource::Bundled),
        last: Some(last),
        json: Some(out.clone()),
        ..RooflineArgs::default()
    };
    roofline::run(args).unwrap();
    let report: Value = serde_json::from_str(&fs::read_to_string(out).unwrap()).unwrap();
    assert_eq!(report["model"], "storyteller");
    assert_eq!(report["hardware"]["measured"], true);
    // Any machine that builds this exceeds 1 GB/s and a billion operations per second.
    assert!(report["hardware"]["bytes_per_second"].as_f64().unwrap() > 1e9, "{report}");
    assert!(report["hardware"]["f32_ops_per_second"].as_f64().unwrap() > 1e9, "{report}");
    assert_eq!(report["ceilings"].as_array().unwrap().len(), 12);
    let products = report["hardware"]["products"].as_array().unwrap();
    let formats: Vec<_> = products.iter().map(|products| &products["format"]).collect();
    assert_eq!(formats[..2], ["f32", "int8"]);
    for products in products {
        // The best of some measurements on a shared machine; faster than the peak is impossible.
        let share = products["share"].as_f64();
        assert!(share.is_none_or(|share| share > 0.0 && share < 1.5), "{report}");
    }
    let case = &report["last"][0];
    assert_eq!((&case["tokens_per_second"], &case["context"]), (&json!(2.0), &json!(64)));
    let ceiling = case["ceiling"]["tokens_per_second"].as_f64().unwrap();
    let share = case["share"].as_f64().unwrap();
    assert!((share * ceiling - 2.0).abs() < 1e-9, "{report}");
    assert!(ceiling > 100.0, "{report}");
}

#[test]
fn one_sequence_is_bound_by_memory_on_every_gpu() {
    for hardware in ["rtx-4090", "h100", "h200", "m3-max"] {
        let report = roofline::compute(&args(&format!("--hardware {hardware}"))).unwrap();
        for (ceiling, kind) in report.ceilings.iter().step_by(3).zip(WeightFormat::ALL) {
            assert_eq!((ceiling.batch, ceiling.weights), (1, kind));
            assert_eq!(ceiling.bound, Bound::Memory, "{report}");
            let memory = report.hardware.bytes_per_second / ceiling.memory_tokens_per_second;
            // 1.03 billion weights, plus a small share of keys and values.
            let element = memory / 1.034_420_224e9;
            let expected = [4.0, 2.0, 1.0][kind as usize];
            assert!((1.0..1.02).contains(&(element / expected)), "{report}");
        }
    }
}

#[test]
fn errors_name_the_flag() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("wrong.json");
    fs::write(&wrong, "{}").unwrap();
    let absent = folder.path().join("absent");
    for (line, part) in [
        (format!("--last {}", wrong.display()), "bench --json"),
        (format!("--last {}", absent.display()), "--last"),
        (format!("--json {}/x", absent.display()), "--json"),
        (format!("--model {}", absent.display()), "--model"),
        ("--context 0".to_owned(), "--context 0 is not from 1 to 2048"),
    ] {
        let error = roofline::run(args(&line)).unwrap_err();
        assert!(error.is_usage(), "{error}");
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    }
    let message = Cli::try_parse_from(["roofline", "--shape", "gpt-9"]).unwrap_err().to_string();
    assert!(message.contains("llama-3-8b"), "{message}");
}

//! `stoker-worker bench`: random weights in real files, and rows of the command run as a process.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use stoker_bench::{
    bench::keys,
    models::{Format, Shape, random::prepare},
};
use stoker_engine::weights::{Dtype, ModelConfig, ModelFiles};

/// Runs the worker. Returns exit code, standard output and standard error.
fn worker(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stoker-worker"));
    command.args(arguments).env_clear().envs(environment.iter().copied());
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// Runs `bench` on the tiny shape. Returns its rows as JSON and as CSV, and the table.
fn bench(folder: &Path, flags: &[&str]) -> (Vec<serde_json::Value>, Vec<Vec<String>>, String) {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (cache, csv, json) = (path("cache"), path("rows.csv"), path("rows.json"));
    let arguments =
        ["bench", "--random-weights", "tiny", "--cache", &cache, "--csv", &csv, "--json", &json];
    let (code, out, error) = worker(&[&arguments, flags].concat(), &[]);
    assert_eq!(code, Some(0), "{flags:?}: {error}");
    let rows = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    let lines = fs::read_to_string(csv).unwrap();
    // The names in these tests have no commas.
    let lines = lines.lines().map(|line| line.split(',').map(str::to_owned).collect());
    (rows, lines.collect(), out)
}

fn number(row: &serde_json::Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("{key} is {} in {row}", row[key]))
}

fn text<'a>(row: &'a serde_json::Value, key: &str) -> &'a str {
    row[key].as_str().unwrap()
}

/// Checks every row: its keys, the same values in CSV, and plausible numbers.
fn check(rows: &[serde_json::Value], lines: &[Vec<String>]) {
    assert_eq!(lines[0], keys());
    assert_eq!(lines.len(), rows.len() + 1);
    for (row, line) in rows.iter().zip(&lines[1..]) {
        let mut found: Vec<_> = row.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = keys();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
        for (key, cell) in keys().iter().zip(line) {
            match &row[key] {
                serde_json::Value::Null => assert_eq!(cell, "", "{key}"),
                serde_json::Value::String(text) => assert_eq!(cell, text, "{key}"),
                number => {
                    assert_eq!(cell.parse::<f64>().unwrap(), number.as_f64().unwrap(), "{key}")
                }
            }
        }
        assert!(text(row, "model").ends_with("tiny"), "{row}");
        assert_eq!(text(row, "device"), "cpu");
        for key in
            ["threads", "load_seconds", "output_tokens", "tpot_seconds", "bandwidth_utilization"]
        {
            assert!(number(row, key) > 0.0, "{key} in {row}");
        }
        assert!(number(row, "read_rate_bytes_per_second") > 1e8, "{row}");
        if cfg!(target_os = "linux") {
            // A lower bound for any process.
            assert!(number(row, "peak_rss_bytes") > 1e6, "{row}");
        }
    }
}

#[test]
fn random_weights_are_the_same_in_both_formats_within_rounding() {
    let folder = tempfile::tempdir().unwrap();
    // The partial file of a process that was killed while writing.
    fs::write(folder.path().join("random-tiny-v1.gguf.partial"), "half").unwrap();
    let open = |format| {
        let path = prepare(Shape::Tiny, format, folder.path()).unwrap();
        ModelFiles::open(&path).unwrap_or_else(|error| panic!("{error}"))
    };
    let (plain, rounded) = (open(Format::Safetensors), open(Format::Gguf));

    let rms_norm_eps = plain.config().rms_norm_eps;
    assert!((rms_norm_eps - rounded.config().rms_norm_eps).abs() < 1e-12, "GGUF stores it in f32");
    assert_eq!(*plain.config(), ModelConfig { rms_norm_eps, ..rounded.config().clone() });
    assert_eq!(*plain.config(), Shape::Tiny.config());

    for text in ["a cab made of ice", "  two  spaces", "naïve 🦙\n", "<s>x</s>"] {
        let (a, b) = (plain.tokenizer(), rounded.tokenizer());
        let ids = a.encode(text, true).unwrap();
        assert_eq!(ids, b.encode(text, true).unwrap(), "{text:?}");
        assert_eq!(a.vocab_size(), 512);
        assert_eq!(a.decode(&ids, false), b.decode(&ids, false), "{text:?}");
    }

    for (info, other) in plain.tensors().zip(rounded.tensors()) {
        let matrix = info.shape.len() > 1;
        assert_eq!((&info.name, &info.shape), (&other.name, &other.shape));
        assert_eq!(info.dtype, Dtype::BF16);
        assert_eq!(other.dtype, if matrix { Dtype::Q8_0 } else { Dtype::F32 });
        let values = plain.read_f32(&info.name).unwrap();
        let others = rounded.read_f32(&info.name).unwrap();
        for (block, others) in values.chunks(32).zip(others.chunks(32)) {
            let largest = block.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            // Half a step, plus what rounding of the scale clamps off the largest value.
            let allowed = if matrix { 0.57 * largest / 127.0 } else { 0.0 };
            for (value, other) in block.iter().zip(others) {
                assert!((value - other).abs() <= allowed, "{}: {value}, {other}", info.name);
            }
        }
    }
}

#[test]
fn random_weights_are_generated_once() {
    let folder = tempfile::tempdir().unwrap();
    for format in [Format::Gguf, Format::Safetensors] {
        let path = prepare(Shape::Tiny, format, folder.path()).unwrap();
        let written = || fs::metadata(&path).unwrap().modified().unwrap();
        let before = written();
        assert_eq!(prepare(Shape::Tiny, format, folder.path()).unwrap(), path);
        assert_eq!(written(), before);
    }
    let files = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let files: Vec<_> = files.map(|name| name.into_string().unwrap()).collect();
    assert!(files.iter().all(|name| !name.contains("partial")), "{files:?}");
}

#[test]
fn rows_of_scenarios_are_the_same_in_json_and_csv() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, lines, table) =
        bench(folder.path(), &["--scenario", "long,short", "--runs", "2", "--quantize", "none"]);
    check(&rows, &lines);
    let cases: Vec<_> = rows
        .iter()
        .map(|row| (text(row, "scenario"), text(row, "format"), number(row, "run") as u64))
        .collect();
    let case = |scenario| {
        [("gguf", 1), ("gguf", 2), ("safetensors", 1), ("safetensors", 2)]
            .map(|(format, run)| (scenario, format, run))
    };
    assert_eq!(cases, [case("long"), case("short")].concat());
    for row in &rows {
        let (prompt, output, context) = match text(row, "scenario") {
            "long" => (1536.0, 128.0, 1600.0),
            _ => (32.0, 64.0, 64.0),
        };
        for (key, expected) in [
            ("batch", 1.0),
            ("prompt_tokens", prompt),
            ("output_tokens", output),
            ("context", context),
        ] {
            assert_eq!(number(row, key), expected, "{key} in {row}");
        }
        assert_eq!(text(row, "quantize"), "none");
        let product = number(row, "decode_tokens_per_second") * number(row, "tpot_seconds");
        assert!((product - 1.0).abs() < 1e-6, "{row}");
        let product = number(row, "prefill_tokens_per_second") * number(row, "ttft_seconds");
        // Both times end with the first token; the prefill time includes some overhead.
        assert!(product > 0.5 * prompt && product < 1.01 * prompt, "{row}");
    }
    for part in ["scenario", "ttft ms", "long", "safetensors", "medians"] {
        assert!(table.contains(part), "{part} is missing:\n{table}");
    }
}

#[test]
fn a_batch_decodes_together() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, lines, _) = bench(folder.path(), &["--batch", "12"]);
    check(&rows, &lines);
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!((number(row, "batch"), number(row, "context")), (12.0, 512.0));
    // All sequences hold 480 tokens when the last one starts to decode, and each samples 64 from
    // there on. Tokens sampled earlier make up for shorter prompts.
    let (prompts, outputs) = (number(row, "prompt_tokens"), number(row, "output_tokens"));
    assert!(prompts < 12.0 * 480.0, "{row}");
    assert!((prompts + outputs - 12.0 * 64.0 - 12.0 * 480.0).abs() <= 12.0, "{row}");
    let product = number(row, "decode_tokens_per_second") * number(row, "tpot_seconds");
    assert!((product - 12.0).abs() < 1e-6, "{row}");
}

#[test]
fn a_soak_has_a_row_with_its_throughput() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--soak", "1s", "--batch", "3", "--context", "16", "--format", "gguf"];
    let (rows, lines, _) = bench(folder.path(), &flags);
    check(&rows, &lines);
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!((text(row, "scenario"), number(row, "batch")), ("soak", 3.0));
    assert!(row["prefill_tokens_per_second"].is_null(), "{row}");
    // Sequences of 24 tokens replace each other in three slots.
    assert!(number(row, "prompt_tokens") > 3.0 * 8.0, "{row}");
    assert!(number(row, "ttft_seconds") > 0.0, "{row}");
}

#[test]
fn a_shared_prefix_is_cached_up_to_the_last_full_block() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--shared-prefix", "100", "--runs", "2"];
    let (rows, lines, table) = bench(folder.path(), &flags);
    check(&rows, &lines);
    let cached: Vec<_> = rows
        .iter()
        .map(|row| (text(row, "scenario"), number(row, "run"), number(row, "cached_prompt_tokens")))
        .collect();
    let (cold, warm) = ("prefix cold", "prefix warm");
    // Six blocks of 16 tokens.
    let expected = [(cold, 1.0, 0.0), (warm, 1.0, 96.0), (cold, 2.0, 0.0), (warm, 2.0, 96.0)];
    assert_eq!(cached, expected);
    assert!(rows.iter().all(|row| number(row, "prompt_tokens") == 108.0), "{rows:?}");
    assert!(table.contains("x cold"), "{table}");
    assert_eq!(table.lines().filter(|line| line.contains(", tpot ")).count(), 2, "{table}");
}

#[test]
fn a_long_prompt_is_measured_by_the_latency_of_decoding_sequences() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--long-prompt", "300", "--batch", "2", "--context", "16", "--format", "gguf"];
    let (rows, lines, table) = bench(folder.path(), &flags);
    check(&rows, &lines);
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!((text(row, "scenario"), number(row, "batch")), ("long prompt", 2.0));
    assert_eq!(number(row, "prompt_tokens"), 2.0 * 16.0 + 300.0);
    // Without a limit, one chunk of 512 tokens would compute the prompt in one step.
    let steps = (number(row, "output_tokens") - 1.0) / 2.0 - 1.0 - 128.0;
    assert!((2.0..=75.0).contains(&steps), "{row}");
    let p99 = |key: &str| number(row, &format!("{key}_p99_seconds"));
    let ratio = p99("itl_under_prefill") / p99("inter_token");
    assert!((number(row, "itl_under_prefill_p99_ratio") - ratio).abs() < 1e-6, "{row}");
    assert!(number(row, "inter_token_p50_seconds") <= p99("inter_token"), "{row}");
    assert!(number(row, "long_prompt_ttft_seconds") > p99("itl_under_prefill"), "{row}");
    assert!(table.contains("while a prompt of 300 tokens is computed"), "{table}");
}

#[test]
fn an_ablation_compares_every_row_with_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, lines, table) = bench(folder.path(), &["--ablation", "--context", "32"]);
    check(&rows, &lines);
    let steps: Vec<_> = rows.iter().map(|row| text(row, "scenario")).collect();
    assert_eq!(&steps[..2], ["naive f32", "fused f32"]);
    assert_eq!(steps.last(), Some(&"int8 drafted"));
    let speculative = &rows[rows.len() - 1];
    assert!(number(speculative, "mean_accepted_length") >= 1.0, "{speculative}");
    assert!(number(speculative, "speedup_over_plain") > 0.0, "{speculative}");
    assert!(rows[0]["ttft_seconds"].is_null(), "{}", rows[0]);
    assert!(table.contains("x before") && table.contains("x first"), "{table}");
}

#[test]
fn draft_tokens_are_counted_and_compared_with_plain_decoding() {
    let folder = tempfile::tempdir().unwrap();
    for drafter in ["draft", "ngram"] {
        let flags = ["--speculate", drafter, "--num-speculative-tokens", "3", "--batch", "2"];
        let (rows, lines, table) = bench(folder.path(), &flags);
        check(&rows, &lines);
        let scenarios: Vec<_> = rows.iter().map(|row| text(row, "scenario")).collect();
        assert_eq!(scenarios, ["greedy", "sampled"]);
        for row in &rows {
            let [drafted, accepted] =
                ["drafted_tokens", "accepted_tokens"].map(|key| number(row, key));
            assert!(accepted > 0.0 && accepted <= drafted, "{row}");
            let length = number(row, "mean_accepted_length");
            assert!(length <= 4.0 && length >= if drafter == "draft" { 1.7 } else { 1.0 }, "{row}");
            assert!(number(row, "speedup_over_plain") > 0.0, "{row}");
        }
        assert!(table.contains("x plain") && table.contains("tok/step"), "{table}");
    }
}

#[test]
fn standard_output_has_only_csv() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().to_str().unwrap();
    let environment = [("STOKER_BENCH_RANDOM_WEIGHTS", "tiny"), ("STOKER_CACHE", cache)];
    let flags = ["bench", "--batch", "1", "--context", "16", "--csv", "-"];
    let (code, out, error) = worker(&flags, &environment);
    assert_eq!(code, Some(0), "{error}");
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), 2, "{out}");
    assert_eq!(lines[0], keys().join(","));
    assert_eq!(lines[1].split(',').count(), keys().len());
    assert!(error.contains("tpot ms"), "{error}");
}

#[test]
fn the_bundled_model_is_measured_within_its_context() {
    let flags = ["bench", "--scenario", "short", "--runs", "1", "--csv", "-"];
    let (code, out, error) = worker(&flags, &[("STOKER_MODEL", "storyteller")]);
    assert_eq!(code, Some(0), "{error}");
    assert!(out.lines().nth(1).unwrap().starts_with("storyteller,short,safetensors,"), "{out}");
    let (code, _, error) = worker(&["bench", "--model", "storyteller"], &[]);
    assert_eq!(code, Some(2));
    for part in ["--scenario long", "1536 + 128", "1024", "--scenario short,medium,code"] {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
}

#[test]
fn errors_are_reported_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let below = file.join("below").to_str().unwrap().to_owned();
    let tiny = ["--random-weights", "tiny"];
    for (flags, parts) in [
        (vec!["--scenario", "huge"], vec!["--scenario", "huge", "short, medium, code, long"]),
        (vec!["--format", "onnx"], vec!["--format", "onnx", "gguf, safetensors"]),
        (vec!["--batch", "0"], vec!["--batch", "0", "1..=4096"]),
        (vec!["--runs", "0"], vec!["--runs", "0"]),
        (vec!["--context", "1"], vec!["--context", "1"]),
        (vec!["--sweep", "heads"], vec!["--sweep", "heads", "batch"]),
        (vec!["--sweep", "batch", "--soak", "1m"], vec!["--sweep", "--soak"]),
        (vec!["--ablation", "--batch", "2"], vec!["--ablation", "--batch"]),
        (vec!["--shared-prefix", "0"], vec!["--shared-prefix", "0"]),
        (vec!["--shared-prefix", "9", "--batch", "2"], vec!["--shared-prefix", "--batch"]),
        (vec!["--batch", "2", "--scenario", "long"], vec!["--batch", "--scenario"]),
        (vec!["--soak", "10"], vec!["--soak", "30s"]),
        (vec!["--quantize", "int1"], vec!["--quantize", "int1", "none"]),
        (vec!["--random-weights", "gpt-5"], vec!["--random-weights", "tinyllama-1.1b"]),
        (vec!["--model", "/no/such"], vec!["--model", "/no/such"]),
        (vec!["--model", "/m", "--format", "gguf"], vec!["--model", "--format"]),
        (vec![tiny[0], tiny[1], "--cache", &below], vec!["--cache", &below, "another folder"]),
        (vec![tiny[0], tiny[1]], vec!["--cache is missing", "XDG_CACHE_HOME", "HOME"]),
        (
            vec!["--speculate", "ngram", "--batch", "2", "--context", "64"],
            vec!["--context", "--speculate", "omit it"],
        ),
        (
            vec!["--speculate", "ngram", "--format", "gguf"],
            vec!["--format", "--speculate", "omit it"],
        ),
        (vec!["--draft-model", "storyteller"], vec!["--draft-model", "--speculate draft"]),
        (
            vec!["--model", "/m", "--speculate", "draft"],
            vec!["--speculate draft", "--draft-model PATH", "--speculate ngram"],
        ),
        (
            vec!["--speculate", "draft", "--num-speculative-tokens", "0"],
            vec!["--num-speculative-tokens", "0"],
        ),
        (vec!["--csv", &below], vec!["--csv", &below]),
        (vec!["--json", &below], vec!["--json", &below]),
    ] {
        let (code, out, error) = worker(&[&["bench"], &flags[..]].concat(), &[]);
        assert_eq!(code, Some(2), "{flags:?}: {error}");
        assert_eq!(out, "", "{flags:?}");
        for part in parts {
            assert!(error.contains(part), "{flags:?} should say {part:?}: {error}");
        }
    }
    // --model before the subcommand belongs to a worker, which is not started.
    let (code, _, error) = worker(&["--model", "storyteller", "bench"], &[]);
    assert_eq!(code, Some(2));
    assert!(error.contains("bench"), "{error}");
}

#[test]
fn a_failed_process_is_reported_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = prepare(Shape::Tiny, Format::Safetensors, folder.path()).unwrap();
    let weights = path.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    // Makes the last weight NaN. It is not validated when the file is opened.
    let end = bytes.len();
    bytes[end - 4..].fill(0xff);
    fs::write(&weights, bytes).unwrap();
    let model = path.to_str().unwrap();
    let (code, _, error) = worker(&["bench", "--model", model, "--scenario", "short"], &[]);
    assert_eq!(code, Some(2), "{error}");
    for part in ["short, safetensors, run 1: ", model, "NaN"] {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
}

#[test]
fn help_explains_every_scenario_key_and_variable() {
    let (code, help, _) = worker(&["bench", "--help"], &[]);
    assert_eq!(code, Some(0));
    for part in ["32 tokens in, 64 out", "256 in, 128 out", "512 in, 256 out", "1536 in, 128 out"] {
        assert!(help.contains(part), "{part} is missing:\n{help}");
    }
    for part in ["Examples:", "Exit codes:", "before it loads the model"] {
        assert!(help.contains(part), "{part} is missing:\n{help}");
    }
    let (_, keys) = help.split_once("A row's keys").unwrap();
    let explained: Vec<_> = keys.split([' ', ',', '\n']).collect();
    for key in stoker_bench::bench::keys() {
        assert!(explained.contains(&key), "{key} is missing:\n{keys}");
    }
    let flags = help.lines().filter_map(|line| line.strip_prefix("      --"));
    let flags: Vec<_> = flags.map(|flag| flag.split([' ', '=']).next().unwrap()).collect();
    assert!(flags.len() >= 8, "{flags:?}");
    for flag in flags {
        let name = flag.replace('-', "_").to_uppercase();
        let known = ["STOKER_", "STOKER_BENCH_"].map(|prefix| format!("[env: {prefix}{name}="));
        assert!(known.iter().any(|twin| help.contains(twin)), "{known:?} is missing");
    }
    assert!(!worker(&["--help"], &[]).1.contains("bench-job"), "bench-job is an internal command");
}

#[test]
fn options_can_come_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stoker.toml");
    fs::write(&file, "runs = 7\nscenario = ['short', 'code']\nlisten = '127.0.0.1:1'\n").unwrap();
    let config = ["bench", "--config", file.to_str().unwrap(), "--print-config"];
    let (code, printed, error) = worker(&config, &[("STOKER_BENCH_FORMAT", "gguf")]);
    assert_eq!(code, Some(0), "{error}");
    for part in ["runs = 7", "scenario = [\"short\", \"code\"]", "format = [\"gguf\"]"] {
        assert!(printed.contains(part), "{part} is missing:\n{printed}");
    }
}

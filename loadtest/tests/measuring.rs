//! Counts, measurements, and how they are reported.

use std::{collections::BTreeSet, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use stoker_shared::ServiceError;

use crate::support::{Files, PROMPT_TOKENS, Script, Server, TOKENS, alone, end, run, start};

const LATENCIES: [&str; 5] =
    ["ttft_seconds", "itl_seconds", "longest_pause_seconds", "tpot_seconds", "e2e_seconds"];

#[tokio::test]
async fn every_request_is_counted_once_and_every_failure_is_named() {
    let server = Server::new(|seed, _| match seed % 10 {
        1 => Script::Refuse(ServiceError::unavailable("no worker is ready")),
        2 => Script::Lose(2, ServiceError::unavailable("worker 7 ended the response early")),
        3 => Script::Skip,
        4 if seed == 4 => Script::Hang,
        5 => Script::Truncate(3),
        _ => Script::Respond,
    })
    .await;
    let files = Files::new();
    let ran = run(&server, &files, "--requests 50 --concurrency 8 --deadline 3s").await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert_eq!(server.requests(), 50);
    // Refused: five UNAVAILABLE and one without any response. Lost: five that failed, five that
    // ended early, five with a missing token.
    for (path, count) in [
        ("requests.sent", 50),
        ("requests.complete", 29),
        ("requests.refused", 6),
        ("requests.lost", 15),
        ("requests.cut_off", 0),
        ("tokens.prompt", 29 * u64::from(PROMPT_TOKENS)),
        ("tokens.cached_prompt", 29),
        ("tokens.completion", 29 * u64::from(TOKENS)),
        ("tokens.lost", 5 * 2 + 5 * 3 + 5 * u64::from(TOKENS - 1)),
        ("finish_reasons.length", 29),
    ] {
        assert_eq!(ran.count(path), count, "{path}: {}", ran.table);
    }
    let errors = ran.at("errors").as_array().unwrap();
    let named: Vec<_> = errors
        .iter()
        .map(|error| (error["code"].as_str().unwrap(), error["count"].as_u64().unwrap()))
        .collect();
    assert_eq!(named, [("DEADLINE_EXCEEDED", 1), ("INTERNAL", 5), ("UNAVAILABLE", 15)]);
    let example = errors[1]["example"].as_str().unwrap();
    assert!(example.contains("received 5 tokens of the 6"), "{example}");
    for part in ["scripted at ", "requests rejected", "responses lost", "UNAVAILABLE", "INTERNAL"] {
        assert!(ran.table.contains(part), "{part} is missing:\n{}", ran.table);
    }
    assert_eq!(ran.errors, "", "nothing on standard error without a terminal");
}

#[tokio::test]
async fn latencies_are_of_complete_responses_and_consistent() {
    let server = Server::new(|_, _| Script::Respond).await;
    let ran = run(&server, &Files::new(), "--requests 200 --concurrency 10").await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    for name in LATENCIES {
        let latency = ran.at(name);
        let value = |key: &str| latency[key].as_f64().unwrap();
        let count = if name == "itl_seconds" { 200 * u64::from(TOKENS - 1) } else { 200 };
        assert_eq!(latency["count"], count, "{name}");
        let increasing = ["min", "p50", "p90", "p95", "p99", "p99_9", "max"].map(value);
        assert!(increasing.is_sorted(), "{name}: {increasing:?}");
        assert!(value("min") <= value("mean") && value("mean") <= value("max"), "{latency}");
    }
    let max = |name: &str| ran.at(&format!("{name}.max")).as_f64().unwrap();
    assert!(max("ttft_seconds") <= max("e2e_seconds"));
    assert!(max("e2e_seconds") <= 1.002 * ran.at("duration_seconds").as_f64().unwrap());
    assert!(ran.at("send_lag_seconds").is_null(), "no lag without a rate");
    assert!(ran.at("longest_pause_resumed_seconds").is_null(), "no response was resumed");
    let rate = ran.at("output_tokens_per_second").as_f64().unwrap();
    let tokens = rate * ran.at("duration_seconds").as_f64().unwrap();
    assert!((tokens - 200.0 * f64::from(TOKENS)).abs() < 1e-6, "{tokens}");
    // The means of what the server reports.
    for (stage, seconds) in [("queue", 0.002), ("prefill", 0.003), ("decode", 0.005)] {
        let reported = ran.at(&format!("stages_mean_seconds.{stage}")).as_f64().unwrap();
        assert!((reported - seconds).abs() < 1e-9, "{stage}: {reported}");
    }
    assert_eq!(ran.at("workers"), &serde_json::json!({"worker-0": 100, "worker-1": 100}));
}

#[tokio::test]
async fn latency_is_measured_from_the_scheduled_time() {
    // One stream, which is busy with one response while all other requests are scheduled.
    let server = Server::new(|seed, _| match seed {
        0 => Script::Late(Duration::from_millis(500)),
        _ => Script::Respond,
    })
    .await;
    let load = "--rate 1000 --requests 20 --concurrency 1";
    let ran = run(&server, &Files::new(), load).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let of = |name: &str, key: &str| ran.at(&format!("{name}_seconds.{key}")).as_f64().unwrap();
    assert!(of("e2e", "p50") > 0.3, "requests wait for the first one: {}", ran.table);
    assert!(of("send_lag", "p50") > 0.3 && of("send_lag", "min") < 0.3, "{}", ran.table);
    assert!(ran.table.contains("send lag"), "{}", ran.table);
}

#[tokio::test]
async fn the_longest_pause_is_reported_for_all_and_for_resumed_responses() {
    let pause = Duration::from_millis(500);
    let server = Server::new(move |seed, _| match seed % 10 {
        3 => Script::Resume(pause),
        4 => Script::Lose(5, ServiceError::unavailable("worker 7 ended the response early")),
        _ => Script::Respond,
    })
    .await;
    let ran = run(&server, &Files::new(), "--requests 40 --concurrency 40").await;
    assert_eq!((ran.code, ran.count("requests.lost")), (Some(1), 4), "{}", ran.errors);
    let of = |name: &str, key: &str| ran.at(&format!("{name}_seconds.{key}")).clone();
    assert_eq!((ran.count("resumes"), of("longest_pause", "count")), (4, 36.into()));
    assert_eq!(of("longest_pause_resumed", "count"), 4);
    // A sleep is never shorter than requested, but earlier events may be read late.
    let min = of("longest_pause_resumed", "min").as_f64().unwrap();
    assert!(min > 0.3, "{min}");
    assert_eq!(of("longest_pause", "max"), of("longest_pause_resumed", "max"));
    let rows = ["longest pause  ", "  of resumed  "];
    assert!(rows.iter().all(|row| ran.table.contains(row)), "{}", ran.table);
}

#[tokio::test]
async fn responses_that_meet_the_objectives_are_counted() {
    let server = Server::new(|seed, _| match seed % 4 {
        1 => Script::Late(Duration::from_millis(700)),
        2 => Script::Refuse(ServiceError::unavailable("no worker is ready")),
        _ => Script::Respond,
    })
    .await;
    // Far above what a busy machine adds to a response at once.
    let slo = "--requests 40 --concurrency 40 --slo ttft=600ms,itl=10s";
    let ran = run(&server, &Files::new(), slo).await;
    assert_eq!(ran.code, Some(1), "ten requests fail: {}", ran.errors);
    assert_eq!((ran.count("goodput.missed_ttft"), ran.count("goodput.missed_itl")), (10, 0));
    assert_eq!(ran.count("goodput.met"), 20, "{}", ran.table);
    let share = ran.at("goodput.share").as_f64().unwrap();
    assert!((share - 0.5).abs() < 1e-9, "failures count: {share}");
    for part in ["objectives", "missed ttft", "missed itl", "50.0 %"] {
        assert!(ran.table.contains(part), "{part} is missing:\n{}", ran.table);
    }
    assert!(!ran.table.contains("missed e2e"), "{}", ran.table);
}

#[tokio::test]
async fn a_warm_up_is_not_measured_and_must_succeed() {
    let server = Server::new(|_, _| Script::Respond).await;
    let ran = run(&server, &Files::new(), "--requests 5 --warm-up 7").await;
    assert_eq!((ran.code, ran.count("requests.complete")), (Some(0), 5), "{}", ran.errors);
    assert_eq!((server.requests(), ran.count("config.warm_up")), (12, 7));
    let failing =
        Server::new(|_, _| Script::Refuse(ServiceError::unavailable("no worker is ready"))).await;
    let endpoint = failing.address.to_string();
    let files = Files::new();
    let flags = ["--endpoint", &endpoint, "--prompts", "prompts.txt", "--warm-up", "3"];
    let (code, out, error) = alone(&flags, &files.path("")).await;
    assert_eq!((code, out.as_str()), (Some(1), ""), "{error}");
    assert!(error.contains("--warm-up: UNAVAILABLE: no worker is ready"), "{error}");
}

#[tokio::test]
async fn stages_of_a_rate_end_the_run() {
    let server = Server::new(|_, _| Script::Respond).await;
    let load = "--rate 100:100ms,0:100ms,100-300:100ms --arrivals constant";
    let ran = run(&server, &Files::new(), load).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    // The last request of a stage is the first one after it.
    assert_eq!(ran.count("requests.complete"), 29, "{}", ran.table);
    assert_eq!(ran.at("config.arrivals"), "constant");
    assert!(ran.at("duration_seconds").as_f64().unwrap() >= 0.2, "the pause is a part of it");
    assert!(ran.table.contains("100:100ms,0:100ms,100-300:100ms requests per second (constant)"));
}

#[tokio::test]
async fn streams_and_connections_are_as_many_as_requested() {
    let server = Server::new(|_, _| Script::Together(12)).await;
    let load = "--requests 60 --concurrency 12 --connections 3";
    let ran = run(&server, &Files::new(), load).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert_eq!((server.max_open(), server.connections()), (12, 3));
    assert!(ran.table.contains("12 streams at once over 3 connections"), "{}", ran.table);
}

#[tokio::test]
async fn a_duration_limits_sending_and_waits_for_responses() {
    let server = Server::new(|_, _| Script::Respond).await;
    let ran = run(&server, &Files::new(), "--duration 200ms --concurrency 2").await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert!(ran.count("requests.sent") > 2);
    assert_eq!(ran.count("requests.complete"), u64::from(server.requests()));
    assert!(ran.at("duration_seconds").as_f64().unwrap() >= 0.2);
}

#[tokio::test]
async fn a_signal_ends_the_run_with_partial_results() {
    let server =
        Server::new(|seed, _| if seed < 10 { Script::Respond } else { Script::Hang }).await;
    let files = Files::new();
    let program = start(&server, &files, "--requests 1000 --concurrency 4");
    server.open(4).await;
    while server.requests() < 14 {
        tokio::task::yield_now().await;
    }
    kill(Pid::from_raw(program.id().unwrap().try_into().unwrap()), Signal::SIGINT).unwrap();
    let ran = end(program, &files).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert_eq!((ran.count("requests.complete"), ran.count("requests.cut_off")), (10, 4));
    assert_eq!(ran.at("interrupted"), &Value::Bool(true));
    assert!(ran.table.contains("ended early by a signal"), "{}", ran.table);
    server.open(0).await;
}

#[tokio::test]
async fn the_json_file_has_the_documented_keys() {
    let server = Server::new(|seed, _| match seed {
        0 => Script::Refuse(ServiceError::unavailable("not now")),
        1 => Script::Alter,
        _ => Script::Resume(Duration::ZERO),
    })
    .await;
    let files = Files::new();
    let quiet = Server::new(|_, _| Script::Respond).await;
    run(&quiet, &files, "--requests 3 --save-digests quiet.jsonl").await;
    let ran = run(&server, &files, "--expect quiet.jsonl --rate 1000 --slo ttft=1h").await;
    let mut keys = BTreeSet::new();
    paths("", &ran.json, &mut keys);
    let known: BTreeSet<String> = include_str!("json_keys.txt").lines().map(Into::into).collect();
    let new: Vec<_> = keys.difference(&known).collect();
    let gone: Vec<_> = known.difference(&keys).collect();
    assert!(new.is_empty() && gone.is_empty(), "new: {new:?}\ngone: {gone:?}");
    assert_eq!(ran.json["version"], 3);

    // JSON on standard output instead of the table.
    let endpoint = quiet.address.to_string();
    let flags =
        ["--endpoint", &endpoint, "--prompts", "prompts.txt", "--requests", "2", "--json", "-"];
    let (_, printed, _) = alone(&flags, &files.path("")).await;
    let printed: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(printed["requests"]["complete"], 2);
}

/// Collects all paths that lead to a value. `[]` stands for an entry of a list.
fn paths(path: &str, value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                let dot = if path.is_empty() { "" } else { "." };
                // The keys of `workers` are names.
                let key = if path == "workers" { "*" } else { key };
                paths(&format!("{path}{dot}{key}"), value, found);
            }
        }
        Value::Array(entries) => {
            entries.iter().for_each(|entry| paths(&format!("{path}[]"), entry, found));
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

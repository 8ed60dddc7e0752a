//! Responses are compared with those of an undisturbed run.

use stoker_shared::ServiceError;

use crate::support::{Files, Script, Server, run};

#[tokio::test]
async fn two_passes_match_however_events_are_split() {
    let server =
        Server::new(|_, before| if before == 0 { Script::Respond } else { Script::Regroup }).await;
    let ran = run(&server, &Files::new(), "--requests 40 --concurrency 7 --verify").await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.table, ran.errors);
    assert_eq!(server.requests(), 80, "every request is sent twice");
    assert_eq!((ran.count("verify.matched"), ran.count("verify.missing")), (40, 0));
    let passes: Vec<_> = ran.errors.lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(passes, ["pass 1 of 2", "pass 2 of 2"]);
}

#[tokio::test]
async fn the_second_pass_repeats_the_requests_of_a_duration() {
    let server = Server::new(|_, _| Script::Respond).await;
    let ran = run(&server, &Files::new(), "--duration 100ms --concurrency 3 --verify").await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.table, ran.errors);
    assert_eq!(2 * ran.count("verify.matched"), u64::from(server.requests()));
}

#[tokio::test]
async fn one_different_token_is_found() {
    let server = Server::new(|seed, before| match (seed, before) {
        (1017, 1) => Script::Alter,
        _ => Script::Respond,
    })
    .await;
    let ran = run(&server, &Files::new(), "--requests 40 --seed 1000 --verify").await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert_eq!((ran.count("verify.matched"), ran.count("verify.mismatched")), (39, 1));
    let mismatch = &ran.at("verify.mismatches")[0];
    assert_eq!((&mismatch["index"], &mismatch["seed"]), (&17.into(), &1017.into()));
    let text = |side: &str| mismatch[side]["text"].as_str().unwrap().trim_end().to_owned();
    assert!(text("expected").ends_with("101705") && text("actual").ends_with("101706"));
    for part in ["different", "request 17 (seed 1017, worker worker-1)", "101706"] {
        assert!(ran.table.contains(part), "{part} is missing:\n{}", ran.table);
    }
}

#[tokio::test]
async fn a_lost_response_is_counted_as_missing() {
    let server = Server::new(|seed, before| match (seed, before) {
        (3, 1) => Script::Lose(4, ServiceError::unavailable("worker 7 ended the response early")),
        (5, 1) => Script::Refuse(ServiceError::unavailable("no worker is ready")),
        _ => Script::Respond,
    })
    .await;
    let ran = run(&server, &Files::new(), "--requests 20 --verify").await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    let counts = ["verify.matched", "verify.mismatched", "verify.missing", "requests.lost"];
    assert_eq!(counts.map(|path| ran.count(path)), [18, 0, 2, 1], "{}", ran.table);
}

#[tokio::test]
async fn a_disturbed_first_pass_ends_the_run() {
    let server = Server::new(|seed, _| match seed {
        3 => Script::Refuse(ServiceError::unavailable("no worker is ready")),
        _ => Script::Respond,
    })
    .await;
    let ran = run(&server, &Files::new(), "--requests 20 --verify").await;
    assert_eq!(ran.code, Some(1));
    assert_eq!(server.requests(), 20, "there is no second pass");
    assert!(ran.errors.contains("pass 1 was disturbed"), "{}", ran.errors);
    assert!(ran.table.contains("UNAVAILABLE") && ran.at("verify").is_null(), "{}", ran.table);
}

#[tokio::test]
async fn responses_match_saved_digests() {
    let server = Server::new(|_, _| Script::Respond).await;
    let files = Files::new();
    let ran = run(&server, &files, "--requests 30 --save-digests quiet.jsonl").await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let saved = files.read("quiet.jsonl");
    assert_eq!(saved.lines().count(), 30);

    // As many requests as the file has, unless a flag overrides it.
    let ran = run(&server, &files, "--expect quiet.jsonl --concurrency 3").await;
    assert_eq!((ran.code, ran.count("verify.matched")), (Some(0), 30), "{}", ran.errors);
    let ran = run(&server, &files, "--expect quiet.jsonl --requests 10").await;
    assert_eq!((ran.code, ran.count("verify.matched")), (Some(0), 10), "{}", ran.errors);

    // One digest differs, and its index is reported.
    let mut lines: Vec<serde_json::Value> =
        saved.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines[12]["response"] = lines[13]["response"].clone();
    let altered: Vec<_> = lines.iter().map(ToString::to_string).collect();
    files.write("altered.jsonl", &altered.join("\n"));
    let ran = run(&server, &files, "--expect altered.jsonl").await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert_eq!((ran.count("verify.matched"), ran.count("verify.mismatched")), (29, 1));
    assert_eq!(ran.at("verify.mismatches")[0]["index"], 12);

    // A run with other requests is rejected.
    files.write("gap.jsonl", &saved.lines().skip(1).collect::<Vec<_>>().join("\n"));
    files.write("broken.jsonl", &saved.replacen("\"length\"", "\"lengthy\"", 1));
    files.write("empty.jsonl", "");
    let before = server.requests();
    for (arguments, parts) in [
        ("--expect quiet.jsonl --requests 31", &["--requests 31", "quiet.jsonl", "30"][..]),
        ("--expect quiet.jsonl --seed 1", &["request 0", "seed"]),
        ("--expect quiet.jsonl --max-tokens 9", &["request 0", "lengths"]),
        ("--expect quiet.jsonl --temperature 0.5", &["request 0", "temperature"]),
        ("--expect gap.jsonl", &["gap.jsonl, line 1", "request 1"]),
        ("--expect broken.jsonl", &["broken.jsonl, line 1", "lengthy"]),
        ("--expect empty.jsonl", &["empty.jsonl", "no digest"]),
        ("--expect nowhere.jsonl", &["--expect nowhere.jsonl"]),
    ] {
        let ran = run(&server, &files, arguments).await;
        assert_eq!(ran.code, Some(2), "{arguments}: {}", ran.errors);
        for part in parts {
            assert!(ran.errors.contains(part), "{arguments}: {part:?} is missing: {}", ran.errors);
        }
    }
    assert_eq!(server.requests(), before, "nothing was sent");
}

#[tokio::test]
async fn a_disturbed_run_saves_no_digests() {
    let server = Server::new(|seed, _| match seed {
        3 => Script::Lose(1, ServiceError::unavailable("worker 7 ended the response early")),
        _ => Script::Respond,
    })
    .await;
    let files = Files::new();
    files.write("quiet.jsonl", "old content\n");
    let ran = run(&server, &files, "--requests 10 --save-digests quiet.jsonl").await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.errors.contains("--save-digests: not written"), "{}", ran.errors);
    assert_eq!(files.read("quiet.jsonl"), "old content\n");
}

//! Kinds of load: conversations, cancelled requests, faults, the target's metrics, and sweeps.

use std::sync::{Arc, Mutex};

use axum::{Router, routing::get};
use serde_json::Value;
use stoker_shared::ServiceError;
use tokio::net::TcpListener;

use crate::support::{Files, Script, Server, TOKENS, run};

#[tokio::test]
async fn a_conversation_continues_with_its_responses() {
    let server = Server::new(|_, _| Script::Respond).await;
    let ran = run(&server, &Files::new(), "--requests 7 --turns 3 --concurrency 1").await;
    assert_eq!((ran.code, ran.count("requests.complete")), (Some(0), 7), "{}", ran.errors);
    let prompts = server.prompts();
    let prompts = |i: usize| prompts[i].as_str();
    assert_eq!(prompts(0), "Once upon a time");
    let response: String = (0..TOKENS).map(|i| format!("{i} ")).collect();
    assert_eq!(prompts(1), format!("{}{response}\nThe fox", prompts(0)));
    assert!(
        prompts(2).starts_with(prompts(1)) && prompts(2).ends_with("\nA hen"),
        "{}",
        prompts(2)
    );
    // The next conversation begins anew, and the last one has no second turn.
    assert_eq!((prompts(3), prompts(6)), ("Once upon a time", "Once upon a time"));
    assert!(ran.table.contains("in conversations of 3 turns"), "{}", ran.table);
}

#[tokio::test]
async fn a_failed_turn_ends_its_conversation() {
    let server = Server::new(|seed, _| match seed {
        1 => Script::Refuse(ServiceError::unavailable("no worker is ready")),
        _ => Script::Respond,
    })
    .await;
    let ran = run(&server, &Files::new(), "--requests 8 --turns 4").await;
    assert_eq!(ran.code, Some(1));
    let counts = ["requests.sent", "requests.complete", "requests.refused"];
    assert_eq!(counts.map(|path| ran.count(path)), [6, 5, 1], "{}", ran.table);
}

#[tokio::test]
async fn conversations_are_verified_too() {
    let server = Server::new(|seed, before| match (seed, before) {
        (4, 1) => Script::Alter,
        _ => Script::Respond,
    })
    .await;
    let ran = run(&server, &Files::new(), "--requests 12 --turns 3 --verify").await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert_eq!((ran.count("verify.matched"), ran.count("verify.mismatched")), (11, 1));
}

#[tokio::test]
async fn cancelled_requests_are_counted_and_end_at_the_server() {
    let server = Server::new(|_, _| Script::Stall(4)).await;
    let ran = run(&server, &Files::new(), "--requests 30 --cancel 1:3").await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.table, ran.errors);
    assert_eq!((ran.count("requests.cancelled"), ran.count("requests.complete")), (30, 0));
    assert!((90..=120).contains(&ran.count("tokens.cancelled")), "{}", ran.table);
    server.open(0).await;
    assert!(ran.table.contains("cancelled"), "{}", ran.table);

    let server = Server::new(|_, _| Script::Respond).await;
    let ran = run(&server, &Files::new(), "--requests 60 --cancel 0.5:2").await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let (cancelled, complete) = (ran.count("requests.cancelled"), ran.count("requests.complete"));
    assert!(cancelled > 10 && complete > 10 && cancelled + complete == 60, "{}", ran.table);
}

#[tokio::test]
async fn faults_are_injected_and_reported() {
    let files = Files::new();
    let server = Server::new(|_, _| Script::Late(std::time::Duration::from_millis(1))).await;
    let mut command = crate::support::command(&server, &files, "--rate 50 --duration 3s");
    command.args(["--fault", "100ms=touch injected", "--fault", "200ms=exit 3"]);
    command.args(["--fault", "1h=touch late"]);
    let ran = crate::support::end(command.spawn().unwrap(), &files).await;
    assert!(files.path("injected").exists() && !files.path("late").exists());
    assert_eq!(ran.code, Some(1), "a fault that was not injected: {}", ran.errors);
    let faults = ran.at("faults").as_array().unwrap();
    let of = |key: &str| faults.iter().map(|fault| fault[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("ran"), [true, true, false]);
    assert_eq!(of("succeeded"), [true, false, false]);
    assert_eq!(of("exit_code"), [Value::from(0), 3.into(), Value::Null]);
    for part in ["touch injected (done)", "failed with exit code 3", "not injected"] {
        assert!(ran.table.contains(part), "{part}: {}", ran.table);
    }
}

#[tokio::test]
async fn metrics_of_the_target_are_reported_beside() {
    let count = Arc::new(Mutex::new(0));
    let metrics = move || {
        let mut count = count.lock().unwrap();
        *count += 1;
        let text = format!(
            "# TYPE running gauge\nrunning{{a=\"b c\"}} {}\nsame 1\n# TYPE done counter\ndone_total {}\n",
            *count % 3,
            *count * 10
        );
        async move { text }
    };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/page", get(|| async { "<html></html>" }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let server = Server::new(|_, _| Script::Respond).await;
    let load = format!("--rate 50 --duration 2500ms --scrape {address}");
    let ran = run(&server, &Files::new(), &load).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let metrics = &ran.at("metrics")[0];
    assert_eq!(metrics["url"], format!("http://{address}/metrics"));
    let names: Vec<_> =
        metrics["series"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["done_total", "running{a=\"b c\"}"]);
    assert_eq!(
        (&metrics["left_out"], &metrics["series"][0]["is_counter"]),
        (&1.into(), &true.into())
    );
    let points = metrics["at_seconds"].as_array().unwrap().len();
    assert!(points >= 2, "{metrics}");
    assert_eq!(metrics["series"][1]["values"].as_array().unwrap().len(), points);

    for (url, part) in [
        (format!("http://{address}/nothing"), "404"),
        (format!("http://{address}/page"), "has no metrics"),
        ("127.0.0.1:1".into(), "refused"),
    ] {
        let ran = run(&server, &Files::new(), &format!("--requests 1 --scrape {url}")).await;
        assert_eq!(ran.code, Some(1), "{url}: {}", ran.errors);
        assert!(ran.errors.contains("--scrape") && ran.errors.contains(part), "{}", ran.errors);
    }
}

/// The number of the run of a sweep, from its seed.
fn run_of(seed: u64) -> u64 {
    seed >> 32
}

#[tokio::test]
async fn a_sweep_finds_the_highest_rate_that_meets_the_objectives() {
    // Two runs at 200 requests per second and two at 400 are good; none is after that.
    let server = Server::new(|seed, _| match run_of(seed) {
        0..4 => Script::Respond,
        _ => Script::Refuse(ServiceError::unavailable("no worker is ready")),
    })
    .await;
    let sweep = "--sweep 200-1600 --requests 20 --repeats 2 --slo e2e=1h --csv rows.csv";
    let files = Files::new();
    let ran = run(&server, &files, sweep).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.table, ran.errors);
    assert_eq!(ran.at("sweep.highest_rate"), 400.0);
    let next = ran.at("sweep.next_rate").as_f64().unwrap();
    assert!((400.0..=420.0).contains(&next), "{next}");
    let points = ran.at("sweep.points").as_array().unwrap();
    let of = |key: &str| points.iter().map(|point| point[key].clone()).collect::<Vec<_>>();
    assert!(of("rate").iter().map(|rate| rate.as_f64().unwrap()).is_sorted());
    assert_eq!(of("verdict")[..3], ["meets", "meets", "misses"]);
    assert_eq!((of("share")[0].as_f64(), of("share")[2].as_f64()), (Some(1.0), Some(0.0)));
    // Everything else is of the last run at that rate.
    assert_eq!((ran.at("config.rate"), ran.count("requests.complete")), (&"400".into(), 20));
    assert!(ran.table.contains("400 requests per second is the highest rate"), "{}", ran.table);
    let rows = files.read("rows.csv");
    let runs: std::collections::BTreeSet<_> =
        rows.lines().skip(1).map(|row| row.split(',').next().unwrap()).collect();
    assert!(runs.len() > 5 && runs.contains("1"), "{runs:?}");

    let server =
        Server::new(|_, _| Script::Refuse(ServiceError::unavailable("no worker is ready"))).await;
    let ran = run(&server, &files, sweep).await;
    assert_eq!(ran.code, Some(1), "{}", ran.table);
    assert!(ran.at("sweep.highest_rate").is_null());
    assert!(ran.table.contains("no rate of the sweep"), "{}", ran.table);

    let server = Server::new(|_, _| Script::Respond).await;
    let ran = run(&server, &files, sweep).await;
    assert_eq!((ran.code, ran.at("sweep.highest_rate")), (Some(0), &1600.0.into()));
    assert!(ran.at("sweep.next_rate").is_null() && ran.table.contains("sweep further up"));
}

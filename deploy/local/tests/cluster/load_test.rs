//! `stoker-loadtest` on clusters with the bundled model: exact lengths, equal completions, and no
//! silent losses.

use std::time::Duration;

use crate::support::{Process, cluster, control, load_test, run, wait_for_load};

#[tokio::test(flavor = "multi_thread")]
async fn an_undisturbed_cluster_gives_the_same_completions_twice() {
    let cluster = cluster(2).await;
    let address = cluster.address().to_string();
    let load = "--verify --requests 80 --concurrency 12 --connections 2 --synthetic 24:16-40";
    let (code, json) = run(load_test(&address, load)).await;
    assert_eq!(code, Some(0), "{json:#}");
    assert_eq!((&json["verify"]["matched"], &json["model"]), (&80.into(), &"storyteller".into()));
    // Synthetic words are one token each, so a prompt has exactly the requested length.
    assert_eq!(json["tokens"]["prompt"], 80 * 24);
    let tokens = json["tokens"]["completion"].as_u64().unwrap();
    assert!((80 * 16..=80 * 40).contains(&tokens), "{tokens}");
    let workers = json["workers"].as_object().unwrap();
    assert_eq!(workers.len(), 2, "{workers:?}");
    assert_eq!(workers.values().map(|n| n.as_u64().unwrap()).sum::<u64>(), 80);
    // The stages account for the whole latency.
    let stages = json["stages_mean_seconds"].as_object().unwrap();
    let sum: f64 = stages.values().map(|seconds| seconds.as_f64().unwrap()).sum();
    let whole = json["e2e_seconds"]["mean"].as_f64().unwrap();
    assert!((sum / whole - 1.0).abs() < 0.01, "the stages add up: {sum} of {whole}");
    assert_eq!(cluster.shutdown(Duration::from_secs(30)).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_is_replayed_with_its_lengths_and_shared_prefixes() {
    let cluster = cluster(1).await;
    // Two of three blocks are the same in all prompts, which arrive one after the other.
    let line = |i: u64| {
        format!(
            "{{\"timestamp\": {}, \"input_length\": 1200, \"output_length\": {}, \
             \"hash_ids\": [1, 2, {}]}}\n",
            i * 500,
            80 + 10 * i,
            100 + i
        )
    };
    let file = tempfile::Builder::new().suffix(".jsonl").tempfile().unwrap();
    std::fs::write(file.path(), (0..8).map(line).collect::<String>()).unwrap();
    let load = format!("--trace {} --trace-speed 5 --trace-length 0.1", file.path().display());
    let (code, json) = run(load_test(&cluster.address().to_string(), &load)).await;
    assert_eq!(code, Some(0), "{json:#}");
    assert_eq!(
        (&json["requests"]["complete"], &json["tokens"]["prompt"]),
        (&8.into(), &960.into())
    );
    assert_eq!(json["tokens"]["completion"], (8..16).sum::<u64>());
    // 102 tokens are shared, which is six blocks of the KV cache.
    assert!(json["tokens"]["cached_prompt"].as_u64().unwrap() >= 96, "{json:#}");
    assert!(json["duration_seconds"].as_f64().unwrap() >= 0.7, "the last one arrives after 700 ms");
    assert_eq!(cluster.shutdown(Duration::from_secs(30)).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_a_killed_worker_are_resumed_and_streams_of_all_are_lost() {
    let [first, second, third] =
        [0; 3].map(|_| Process::start("stoker-worker", &["--model", "storyteller"]));
    let workers = [&first, &second, &third].map(|worker| worker.address.as_str()).join(",");
    let router = ["--workers", &workers, "--resume-timeout", "100ms"];
    let router = Process::start("stoker-router", &router);
    let mut cluster = control(&router.address).await;
    wait_for_load(&mut cluster, |load| load.total_kv_blocks > 0).await;
    let mut watched = control(&first.address).await;
    let mut last = control(&third.address).await;

    // Streams long enough to be interrupted half-way.
    let command = load_test(&router.address, "--requests 24 --concurrency 24 --synthetic 16:400");
    let load = tokio::spawn(run(command));
    // A step is a token for each running sequence.
    wait_for_load(&mut watched, |load| load.running > 2 && load.step > 20).await;
    drop(first);
    let (code, json) = load.await.unwrap();
    assert_eq!((code, &json["requests"]["complete"]), (Some(0), &24.into()), "{json:#}");
    assert!(json["resumes"].as_u64().unwrap() > 0, "{json:#}");

    wait_for_load(&mut last, |load| load.running == 0).await;
    let command = load_test(&router.address, "--requests 24 --concurrency 24 --synthetic 16:400");
    let load = tokio::spawn(run(command));
    wait_for_load(&mut last, |load| load.running > 2).await;
    drop((second, third));
    let (code, json) = load.await.unwrap();
    assert_eq!(code, Some(1), "{json:#}");
    let count = |what: &str| json["requests"][what].as_u64().unwrap();
    assert_eq!(count("sent"), 24);
    assert_eq!(count("complete") + count("refused") + count("lost"), 24, "{json:#}");
    assert!(count("lost") > 0, "streams of killed workers are counted as lost: {json:#}");
    assert_eq!(json["errors"][0]["code"], "UNAVAILABLE", "{json:#}");
}

//! Workers without a model: a thousand of them behind one router.

use std::{collections::HashMap, time::Duration};

use futures::{StreamExt, stream};
use stoker::cluster::Cluster;
use stoker_loader::simulated::SimulatedDevice;
use stoker_proto::v1::GetModelInfoRequest;
use stoker_router::RouterConfig;
use stoker_worker::{ModelSource, WorkerConfig};
use tonic::Code;

use crate::support::{
    Process, complete, control, inference, program, read, request, wait_for_load,
};

const WORKERS: u16 = 1_000;
const REQUESTS: usize = 4_000;
/// Number of concurrent requests, over a few connections.
const AT_ONCE: usize = 400;
const CONNECTIONS: usize = 4;
const TOKENS: u32 = 8;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_workers_share_the_load_and_agree() {
    let device: SimulatedDevice = r#"step = "1ms", decode_token = "100us""#.parse().unwrap();
    let any = ([127, 0, 0, 1], 0).into();
    let source = ModelSource::Simulated(device.0);
    let cluster =
        Cluster::start(any, source, WORKERS, WorkerConfig::default(), RouterConfig::default())
            .await
            .unwrap();
    let address = cluster.address().to_string();
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(inference(&address).await);
    }

    let completions = stream::iter(0..REQUESTS).map(|i| {
        let mut client = clients[i % CONNECTIONS].clone();
        // Every seed is used twice, far apart.
        let seed = (i % (REQUESTS / 2)) as u64;
        async move { (seed, complete(&mut client, request("Once", seed, TOKENS)).await.unwrap()) }
    });
    let completions: Vec<_> = completions.buffer_unordered(AT_ONCE).collect().await;

    let (mut served, mut texts) = (HashMap::<_, usize>::new(), HashMap::new());
    for (seed, completion) in completions {
        assert_eq!(completion.ids.len(), TOKENS as usize);
        *served.entry(completion.accepted.worker).or_default() += 1;
        let known = texts.entry(seed).or_insert_with(|| completion.text.clone());
        assert_eq!(known, &completion.text, "seed {seed} gives the same text on every worker");
    }
    // Random choice would give 18 of a thousand workers no request and one of them 13. Choosing the
    // less loaded of two does better, by how much depends on the number in flight.
    let most = served.values().max().copied().unwrap_or_default();
    assert!(served.len() > 900 && most <= 16, "{} workers, at most {most}", served.len());
    assert_eq!(texts.len(), REQUESTS / 2);
    let distinct: std::collections::HashSet<_> = texts.values().collect();
    assert!(distinct.len() > REQUESTS / 4, "seeds matter: {} texts", distinct.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_simulates_a_profile_given_as_toml() {
    let line = r#"step = "1ms", response_tokens = 10, context_length = 300"#;
    let worker = Process::start("stoker-worker", &["--simulate", line]);
    let info = control(&worker.address).await.get_model_info(GetModelInfoRequest::default()).await;
    let info = info.unwrap().into_inner();
    assert_eq!((info.model.as_str(), info.device_class.as_str()), ("simulated", "simulated"));
    assert_eq!((info.architecture.as_str(), info.context_length), ("Simulated", 300));

    let mut client = inference(&worker.address).await;
    let mut lengths = Vec::new();
    for seed in 0..200 {
        let mut endless = request("Once", seed, 250);
        endless.stopping.as_mut().unwrap().ignore_eos = false;
        lengths.push(complete(&mut client, endless).await.unwrap().ids.len());
    }
    let mean = lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
    // Lengths have mean 10 and standard deviation 10; the mean of two hundred deviates by 0.7.
    assert!((7.0..13.0).contains(&mean), "{mean}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_called_directly_enforces_the_deadline() {
    // The whole response would take eighty seconds.
    let worker = Process::start("stoker-worker", &["--simulate", r#"step = "20ms""#]);
    let mut late = tonic::Request::new(request("Once", 1, 4_000));
    late.set_timeout(Duration::from_millis(500));
    let stream = inference(&worker.address).await.generate(late).await.unwrap();
    let mut tokens = 0;
    let error = read(stream.into_inner(), || tokens += 1).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error:?}");
    assert!(tokens > 0, "tokens generated in time are delivered");
    wait_for_load(&mut control(&worker.address).await, |load| load.running == 0).await;
}

#[test]
fn an_invalid_profile_is_refused() {
    for (profile, part) in [("huge", "instant, large, small"), (r#"stop = "5ms""#, "stop")] {
        let output = program("stoker-worker").args(["--simulate", profile]).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains("--simulate") && message.contains(part), "{message}");
    }
}

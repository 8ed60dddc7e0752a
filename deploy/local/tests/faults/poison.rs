//! A request that makes engines panic, among requests that do not.

use std::time::Duration;

use stoker_proto::v1::{
    GenerateRequest, GetModelInfoRequest, Sampling, Stopping, TokenIds, generate_request::Input,
};
use tokio::{task::spawn_blocking, time::timeout};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    fault_case::FaultCase,
    fleet::{Fleet, INSTANT, simulated, wait_mid_stream},
    support::{Process, TEST_TIMEOUT, complete, control, inference, scrape},
};

/// The EOS token, which no synthetic prompt contains.
async fn eos_token() -> u32 {
    let worker = simulated(INSTANT, &[]);
    let info = control(&worker.address).await.get_model_info(GetModelInfoRequest::default()).await;
    info.unwrap().into_inner().eos_token_ids[0]
}

/// A worker whose device panics at `token`.
fn panicking_worker(token: u32) -> Process {
    simulated(&format!(r#"step = "20ms", prefill_token = "20us", panic_token = {token}"#), &[])
}

fn poison_request(token: u32, seed: u64) -> GenerateRequest {
    GenerateRequest {
        input: Some(Input::TokenIds(TokenIds { ids: vec![9, token, 9] })),
        sampling: Some(Sampling { seed: Some(seed), ..Sampling::default() }),
        stopping: Some(Stopping { max_tokens: Some(50), ..Stopping::default() }),
        ..GenerateRequest::default()
    }
}

async fn exit_code(worker: Process) -> Option<i32> {
    let ended = spawn_blocking(|| worker.wait());
    timeout(TEST_TIMEOUT, ended).await.unwrap().unwrap().code()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_sixteen_in_a_batch_makes_engines_panic() {
    let load = "--requests 45 --concurrency 45 --synthetic 16:150";
    let case = FaultCase::new("a request among 45 makes engines panic", load).await;
    let token = eos_token().await;
    let mut fleet = Fleet::of((0..3).map(|_| panicking_worker(token)).collect()).await;
    let load = case.start(&fleet.router.address);
    let mut refused: Option<Status> = None;
    let results = load
        .during(async {
            for worker in &fleet.workers {
                wait_mid_stream(worker, 12, 10).await;
            }
            let mut client = inference(&fleet.router.address).await;
            refused = complete(&mut client, poison_request(token, 1)).await.err();
            // The same prompt with another seed.
            let again = complete(&mut client, poison_request(token, 2)).await.unwrap_err();
            assert_eq!(again.code(), Code::Internal, "{again:?}");
            assert!(again.message().contains("engines of 2 workers"), "{again:?}");
        })
        .await;
    results.assert_unaffected();
    let refused = refused.unwrap();
    assert_eq!(refused.code(), Code::Internal, "{refused:?}");
    let details = refused.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "QUARANTINED", "{refused:?}");
    assert!(results.resumed() >= 12, "{:#}", results.json);
    // Two workers have exited with an error; the third never received the request.
    let (mut ended, mut left) = (Vec::new(), Vec::new());
    for worker in fleet.workers.drain(..) {
        let alive = tokio::net::TcpStream::connect(&worker.address).await.is_ok();
        if alive { left.push(worker) } else { ended.push(worker) }
    }
    assert_eq!((ended.len(), left.len()), (2, 1));
    for worker in ended {
        assert_eq!(exit_code(worker).await, Some(1));
    }
    fleet.workers = left;
    let metrics = scrape(&fleet.router).await;
    let panicked: f64 = metrics
        .iter()
        .filter(|(name, _)| {
            name.starts_with("stoker_router_resumes_total") && name.contains("PANICKED")
        })
        .map(|(_, count)| count)
        .sum();
    assert!(panicked >= 12.0, "{metrics:#?}");
    fleet.wait_idle().await;
    case.report(
        &results,
        None,
        "it ends two workers and gets INTERNAL; the other requests continue",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_called_directly_names_the_sequences_of_the_step() {
    let token = eos_token().await;
    let worker = panicking_worker(token);
    let mut client = inference(&worker.address).await;
    let beside = GenerateRequest {
        input: Some(Input::Prompt("Once upon a time".into())),
        ..poison_request(token, 1)
    };
    let stream = client.generate(beside).await.unwrap().into_inner();
    let beside = tokio::spawn(async move { crate::support::read(stream, || ()).await });
    wait_mid_stream(&worker, 1, 5).await;
    let status = complete(&mut client, poison_request(token, 1)).await.unwrap_err();
    let info = status.get_error_details().error_info().unwrap().clone();
    assert_eq!((status.code(), info.reason.as_str()), (Code::Internal, "ENGINE_PANICKED"));
    assert_eq!(info.metadata["sequences"], "0", "{info:?}");
    assert!(info.metadata["cause"].contains("panic_token"), "{info:?}");
    let status = timeout(Duration::from_secs(30), beside).await.unwrap().unwrap().unwrap_err();
    assert_eq!(status.get_error_details().error_info().unwrap().reason, "ENGINE_PANICKED");
    assert_eq!(exit_code(worker).await, Some(1));
}

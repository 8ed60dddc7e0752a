//! Clients that disconnect or cancel, and requests whose deadlines pass.

use std::time::Duration;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use stoker_proto::v1::{Sampling, generate_response::Event};
use tonic::Code;

use crate::{
    fault_case::FaultCase,
    fleet::{Fleet, STEADY, wait_mid_stream},
    proxy::{Fault, Plan, Proxy},
    support::{inference, load_test, request},
};

/// The load of unaffected clients.
const HEALTHY_LOAD: &str = "--requests 50 --concurrency 50 --synthetic 16:120";

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_killed() {
    let case = FaultCase::new("half of the clients are killed", HEALTHY_LOAD).await;
    let fleet = Fleet::simulated(2, STEADY).await;
    let killed = "--requests 50 --concurrency 50 --synthetic 16:4000";
    let mut killed = load_test(&fleet.router.address, killed).spawn().unwrap();
    let results = case
        .start(&fleet.router.address)
        .during(async {
            wait_mid_stream(&fleet.workers[0], 30, 20).await;
            let id = killed.id().unwrap().try_into().unwrap();
            kill(Pid::from_raw(id), Signal::SIGKILL).unwrap();
            killed.wait().await.unwrap();
        })
        .await;
    results.assert_unaffected();
    fleet.wait_idle().await;
    case.report(&results, None, "the other half; sequences of the killed clients are aborted");
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlines_pass() {
    let case = FaultCase::new("deadlines pass", HEALTHY_LOAD).await;
    let fleet = Fleet::simulated(2, STEADY).await;
    let expired = case.start_with(&fleet.router.address, "--deadline 2s").end().await;
    expired.assert_outputs_unchanged();
    expired.assert_error_codes(&["DEADLINE_EXCEEDED"]);
    assert_eq!(expired.failed(), 50, "{:#}", expired.json);
    assert!(
        expired.count("tokens.lost") > 50,
        "tokens generated in time are delivered: {:#}",
        expired.json
    );
    fleet.wait_idle().await;
    case.report(&expired, None, "DEADLINE_EXCEEDED; tokens so far are delivered");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_cancel_one_stream_of_many() {
    let case =
        FaultCase::new("clients cancel half of the streams of a connection", HEALTHY_LOAD).await;
    let fleet = Fleet::simulated(2, STEADY).await;
    let mut client = inference(&fleet.router.address).await;
    let results = case
        .start(&fleet.router.address)
        .during(async {
            let mut streams = Vec::new();
            for seed in 0..50 {
                // Several choices each, so that more has to be released.
                let mut long = request("Once upon a time", seed, 4_000);
                long.sampling = Some(Sampling { num_sequences: Some(3), ..long.sampling.unwrap() });
                let mut stream = client.generate(long).await.unwrap().into_inner();
                let first = stream.message().await.unwrap().unwrap();
                assert!(matches!(first.event, Some(Event::Accepted(_))));
                streams.push(stream);
            }
            drop(streams);
        })
        .await;
    results.assert_unaffected();
    fleet.wait_idle().await;
    case.report(&results, None, "the other half");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn clients_vanish_without_closing_their_connections() {
    let case =
        FaultCase::new("clients vanish without closing their connections", HEALTHY_LOAD).await;
    let fleet = Fleet::simulated(2, STEADY).await;
    let proxy = Proxy::to(&fleet.router.address).await;
    let mut client = inference(&proxy.address).await;
    let mut streams = Vec::new();
    let results = case
        .start(&fleet.router.address)
        .during(async {
            for seed in 0..50 {
                let long = request("Once upon a time", seed, 4_000);
                streams.push(client.generate(long).await.unwrap().into_inner());
            }
            proxy.set(Plan::both(Fault::Swallow));
        })
        .await;
    results.assert_unaffected();
    // The router's keepalive pings detect it long before four thousand tokens are generated.
    fleet.wait_idle().await;
    for stream in &mut streams {
        let status = loop {
            match tokio::time::timeout(Duration::from_secs(1), stream.message()).await {
                Ok(Ok(Some(_))) => {}
                Ok(Err(status)) => break Some(status.code()),
                // No status reaches this client, since its connection passes no bytes.
                Ok(Ok(None)) | Err(_) => break None,
            }
        };
        assert!(status.is_none_or(|code| code != Code::Ok));
    }
    case.report(
        &results,
        None,
        "the clients that stay; keepalive pings detect the others within 40 s",
    );
}

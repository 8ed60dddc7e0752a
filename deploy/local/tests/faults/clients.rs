//! Clients that leave, and clients that are late.

use std::time::Duration;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use stoker_proto::v1::{Sampling, generate_response::Event};
use tonic::Code;

use crate::{
    fleet::{Fleet, STEADY, in_the_middle},
    proxy::{Fault, Plan, Proxy},
    row::Row,
    support::{inference, load_test, request},
};

/// Streams of clients that nothing happens to.
const OTHERS: &str = "--requests 50 --concurrency 50 --synthetic 16:120";

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_killed() {
    let row = Row::new("half of the clients are killed", OTHERS).await;
    let fleet = Fleet::simulated(2, STEADY).await;
    let gone = "--requests 50 --concurrency 50 --synthetic 16:4000";
    let mut gone = load_test(&fleet.router.address, gone).spawn().unwrap();
    let seen = row
        .start(&fleet.router.address)
        .during(async {
            in_the_middle(&fleet.workers[0], 30, 20).await;
            let id = gone.id().unwrap().try_into().unwrap();
            kill(Pid::from_raw(id), Signal::SIGKILL).unwrap();
            gone.wait().await.unwrap();
        })
        .await;
    seen.nobody_noticed();
    fleet.at_rest().await;
    row.tell(&seen, None, "the other half; what ran for the killed is aborted");
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlines_pass() {
    let row = Row::new("deadlines pass", OTHERS).await;
    let fleet = Fleet::simulated(2, STEADY).await;
    let late = row.start_with(&fleet.router.address, "--deadline 2s").end().await;
    late.nobody_got_other_text();
    late.failures_are(&["DEADLINE_EXCEEDED"]);
    assert_eq!(late.failed(), 50, "{:#}", late.json);
    assert!(late.count("tokens.lost") > 50, "what was made in time has come: {:#}", late.json);
    fleet.at_rest().await;
    row.tell(&late, None, "DEADLINE_EXCEEDED, tokens so far kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_cancel_one_stream_of_many() {
    let row = Row::new("clients cancel half of the streams of a connection", OTHERS).await;
    let fleet = Fleet::simulated(2, STEADY).await;
    let mut client = inference(&fleet.router.address).await;
    let seen = row
        .start(&fleet.router.address)
        .during(async {
            let mut streams = Vec::new();
            for seed in 0..50 {
                // Of several continuations each, to have more to give back.
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
    seen.nobody_noticed();
    fleet.at_rest().await;
    row.tell(&seen, None, "the other half");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: run by .ci/full"]
async fn clients_vanish_without_a_word() {
    let row = Row::new("clients vanish without a word", OTHERS).await;
    let fleet = Fleet::simulated(2, STEADY).await;
    let proxy = Proxy::to(&fleet.router.address).await;
    let mut client = inference(&proxy.address).await;
    let mut streams = Vec::new();
    let seen = row
        .start(&fleet.router.address)
        .during(async {
            for seed in 0..50 {
                let long = request("Once upon a time", seed, 4_000);
                streams.push(client.generate(long).await.unwrap().into_inner());
            }
            proxy.set(Plan::both(Fault::Swallow));
        })
        .await;
    seen.nobody_noticed();
    // The router's pings find out, long before four thousand tokens are made.
    fleet.at_rest().await;
    for stream in &mut streams {
        let status = loop {
            match tokio::time::timeout(Duration::from_secs(1), stream.message()).await {
                Ok(Ok(Some(_))) => {}
                Ok(Err(status)) => break Some(status.code()),
                // Nobody tells this client: nothing comes through.
                Ok(Ok(None)) | Err(_) => break None,
            }
        };
        assert!(status.is_none_or(|code| code != Code::Ok));
    }
    row.tell(&seen, None, "those who stay; pings find the others within 40 s");
}

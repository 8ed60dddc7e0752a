//! Workers that drain and clients that disconnect, without effect on other streams.

use std::collections::HashSet;

use futures::{StreamExt, future::join_all};
use stoker_proto::v1::{FinishReason, WatchLoadRequest, control_client::ControlClient};
use tokio::{sync::mpsc, time::timeout};
use tonic::transport::Channel;

use crate::support::{
    Process, TEST_TIMEOUT, complete, control, inference, read, request, wait_for_load,
};

const STREAMS: usize = 200;
const TOKENS: u32 = 48;
/// Streams that start after the worker got SIGTERM.
const LATE: usize = 40;
/// Tokens of a stream that fills nearly all of the context.
const LONG: u32 = 1000;

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_drains_loses_no_stream() {
    // A drain timeout for the slowest of machines.
    let patient = ["--model", "storyteller", "--drain-timeout", "120s"];
    let leaving = Process::start("stoker-worker", &patient);
    let staying = Process::start("stoker-worker", &["--model", "storyteller"]);
    let workers = format!("{},{}", leaving.address, staying.address);
    let router = Process::start("stoker-router", &["--workers", &workers]);
    let mut router_control = control(&router.address).await;
    // The router knows both workers once its blocks are twice a worker's.
    let mut worker_control = control(&staying.address).await;
    let info = worker_control.get_model_info(stoker_proto::v1::GetModelInfoRequest::default());
    let blocks = info.await.unwrap().into_inner().capacity.unwrap().kv_blocks;
    wait_for_load(&mut router_control, |load| load.total_kv_blocks == 2 * blocks).await;

    let client = inference(&router.address).await;
    let (token, mut tokens) = mpsc::channel(STREAMS * TOKENS as usize);
    let streams: Vec<_> = (0..STREAMS)
        .map(|i| {
            let (mut client, token) = (client.clone(), token.clone());
            tokio::spawn(async move {
                let request = request(&format!("Story {i}: once there was"), i as u64, TOKENS);
                let stream = client.generate(request).await?.into_inner();
                read(stream, || token.try_send(()).unwrap()).await
            })
        })
        .collect();
    // Half-way: a quarter of the tokens has been received.
    for _ in 0..STREAMS * TOKENS as usize / 4 {
        timeout(TEST_TIMEOUT, tokens.recv()).await.unwrap().unwrap();
    }
    let leaving_id = leaving.id.clone();
    leaving.terminate();
    // Requests during the drain are served by the worker that stays.
    for i in 0..LATE {
        let story = request(&format!("Late story {i}"), i as u64, 4);
        let late = timeout(TEST_TIMEOUT, complete(&mut client.clone(), story)).await.unwrap();
        assert_eq!(late.unwrap().ids.len(), 4, "late stream {i}");
    }
    let completions = timeout(TEST_TIMEOUT, join_all(streams)).await.unwrap();
    let completions: Vec<_> = completions.into_iter().map(|a| a.unwrap().unwrap()).collect();
    let status = tokio::task::spawn_blocking(|| leaving.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0), "a drained worker exits with 0");

    let served: HashSet<_> = completions.iter().map(|a| a.accepted.worker.clone()).collect();
    assert_eq!(served.len(), 2, "both workers served streams: {served:?}");
    assert!(served.contains(&leaving_id));
    for (i, a) in completions.iter().enumerate() {
        assert_eq!(a.ids.len(), TOKENS as usize, "stream {i}");
        assert_eq!(a.finished.reason(), FinishReason::Length);
    }

    // The remaining worker gives the same text alone: it depends neither on the worker nor the
    // batch.
    let mut alone = inference(&staying.address).await;
    for (i, a) in completions.iter().enumerate().step_by(9) {
        let request = request(&format!("Story {i}: once there was"), i as u64, TOKENS);
        let again = complete(&mut alone, request).await.unwrap();
        assert_eq!((again.ids, again.text), (a.ids.clone(), a.text.clone()), "stream {i}");
    }
    wait_for_load(&mut worker_control, |load| {
        load.running == 0 && load.free_kv_blocks == load.total_kv_blocks
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_disconnects_frees_its_blocks() {
    let worker = Process::start("stoker-worker", &["--model", "storyteller"]);
    let router = Process::start("stoker-router", &["--workers", &worker.address]);
    let mut worker_control = control(&worker.address).await;
    let mut router_control = control(&router.address).await;
    wait_for_load(&mut router_control, |load| load.total_kv_blocks > 0).await;

    let mut client = inference(&router.address).await;
    let mut streams = Vec::new();
    let mut last_begins = 0;
    for seed in 0..20 {
        last_begins = step(&mut worker_control).await;
        let long = request("Once upon a time", seed, LONG);
        let mut stream = client.generate(long).await.unwrap().into_inner();
        // After the accepted event and a first token, it runs.
        stream.next().await.unwrap().unwrap();
        stream.next().await.unwrap().unwrap();
        streams.push(stream);
    }
    drop(streams);
    wait_for_load(&mut worker_control, |load| {
        load.running == 0 && load.waiting == 0 && load.free_kv_blocks == load.total_kv_blocks
    })
    .await;
    // Each token takes a step: a last stream that continued to its end would take more.
    let steps = step(&mut worker_control).await - last_begins;
    assert!(steps < u64::from(LONG), "they were cancelled, not finished: {steps} steps");
}

async fn step(client: &mut ControlClient<Channel>) -> u64 {
    let watch = client.watch_load(WatchLoadRequest::default()).await.unwrap();
    watch.into_inner().next().await.unwrap().unwrap().step
}

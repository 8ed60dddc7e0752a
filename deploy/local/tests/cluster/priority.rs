//! Order of requests on a full worker: by priority, then fair over tenants. Requests that cannot
//! meet their deadline are rejected.

use std::time::Duration;

use stoker_proto::v1::{
    GenerateRequest, TokenIds, generate_request::Input, inference_client::InferenceClient,
};
use stoker_shared::ServiceError;
use tokio::{
    sync::mpsc::{Sender, channel},
    time::timeout,
};
use tonic::{Code, Request, metadata::MetadataValue, transport::Channel};

use crate::support::{
    Process, TEST_TIMEOUT, complete, control, inference, read, request, wait_for_load,
};

/// Sends a request of a tenant, and the tenant's name to `completed` when it is complete.
fn send(
    client: &InferenceClient<Channel>,
    tenant: &'static str,
    request: GenerateRequest,
    completed: &Sender<&'static str>,
) {
    let (mut client, completed) = (client.clone(), completed.clone());
    let mut request = Request::new(request);
    request.metadata_mut().insert("x-tenant", MetadataValue::from_static(tenant));
    tokio::spawn(async move {
        let stream = client.generate(request).await.unwrap().into_inner();
        read(stream, || ()).await.unwrap();
        completed.try_send(tenant).unwrap();
    });
}

/// Starts a worker on a simulated device and a router with priorities for tenants.
fn start(profile: &str, max_num_seqs: &str) -> (Process, Process) {
    let flags = ["--simulate", profile, "--max-num-seqs", max_num_seqs];
    let worker = Process::start("stoker-worker", &flags);
    let rules = "batch=500,urgent=0";
    let flags = ["--workers", &worker.address, "--tenant-header", "x-tenant"];
    let flags = [&flags[..], &["--tenant-priority", rules]].concat();
    let router = Process::start("stoker-router", &flags);
    (worker, router)
}

#[tokio::test(flavor = "multi_thread")]
async fn urgent_requests_complete_before_waiting_ones() {
    let (worker, router) = start(r#"step = "2ms""#, "1");
    let mut router_control = control(&router.address).await;
    wait_for_load(&mut router_control, |load| load.total_kv_blocks > 0).await;
    let client = inference(&router.address).await;
    let mut worker_control = control(&worker.address).await;
    let (completed, mut done) = channel(100);
    let make_request = |priority| GenerateRequest { priority, ..request("Once", 1, 100) };
    // Runs for three seconds, long enough for all others to arrive.
    send(&client, "first", request("Once", 1, 1_500), &completed);
    wait_for_load(&mut worker_control, |load| load.running == 1).await;
    // Requests the most urgent priority, and gets the limit of its tenant.
    send(&client, "batch", make_request(Some(0)), &completed);
    wait_for_load(&mut worker_control, |load| load.waiting == 1).await;
    // Requests the most urgent priority too, and gets the default, since no rule names its tenant.
    send(&client, "second", make_request(Some(0)), &completed);
    wait_for_load(&mut worker_control, |load| load.waiting == 2).await;
    send(&client, "urgent", make_request(Some(0)), &completed);
    let mut order = Vec::new();
    for _ in 0..4 {
        order.push(timeout(TEST_TIMEOUT, done.recv()).await.unwrap().unwrap());
    }
    // It preempts the first, which resumes before the others start.
    assert_eq!(order, ["urgent", "first", "second", "batch"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_one_tenant_does_not_starve_another_on_a_worker() {
    const FLOOD: usize = 24;
    let (worker, router) = start(r#"step = "200us""#, "2");
    let mut router_control = control(&router.address).await;
    wait_for_load(&mut router_control, |load| load.total_kv_blocks > 0).await;
    let client = inference(&router.address).await;
    let mut worker_control = control(&worker.address).await;
    let (completed, mut done) = channel(100);
    // Each request has about the tokens of one fair-queueing quantum.
    let make_request = || request("Once", 1, 900);
    (0..FLOOD).for_each(|_| send(&client, "flood", make_request(), &completed));
    wait_for_load(&mut worker_control, |load| load.waiting >= 12).await;
    let before = done.len();
    (0..2).for_each(|_| send(&client, "few", make_request(), &completed));
    let (mut flood, mut few) = (0, 0);
    while few < 2 {
        match timeout(TEST_TIMEOUT, done.recv()).await.unwrap().unwrap() {
            "few" => few += 1,
            _ => flood += 1,
        }
    }
    // Two of the flood ran, and one of the flood is scheduled before each of the few; two more may
    // have ended meanwhile.
    assert!(flood <= before + 8 && flood < FLOOD - 2, "{flood} of the flood, {before} before");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cannot_meet_their_deadline_are_rejected_at_once() {
    // A chunk of 512 tokens takes half a second.
    let profile = r#"prefill_token = "1ms", context_length = 40000"#;
    let worker = Process::start("stoker-worker", &["--simulate", profile]);
    let mut client = inference(&worker.address).await;
    let long_of = |id, tokens| {
        let input = Some(Input::TokenIds(TokenIds { ids: vec![id; tokens] }));
        GenerateRequest { input, ..request("", 1, 1) }
    };
    let long = |tokens| long_of(7, tokens);
    let with_deadline = |request| {
        let mut request = Request::new(request);
        request.set_timeout(Duration::from_millis(900));
        request
    };
    complete(&mut client, long(600)).await.unwrap();
    // A request that alone takes too long does so after any wait; a faster worker may be in time.
    let status = client.generate(with_deadline(long(3_000))).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    let late = ServiceError::from(&status);
    assert!(matches!(late, ServiceError::TooLate { .. }) && late.is_retryable_elsewhere());
    let what = status.message();
    assert!(what.contains("at least") && what.ends_with("increase the deadline"), "{what}");
    // A request that has to wait for others may be retried when they are done.
    let others = client.generate(long_of(8, 30_000)).await.unwrap().into_inner();
    // It is accepted before the engine has it.
    let mut load = control(&worker.address).await;
    wait_for_load(&mut load, |load| load.queued_tokens > 10_000).await;
    let status = client.generate(with_deadline(long_of(9, 300))).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let ServiceError::Overloaded { retry_after, .. } = ServiceError::from(&status) else {
        panic!("{status:?}")
    };
    assert!(retry_after >= Duration::from_secs(1), "{retry_after:?}");
    drop(others);
    wait_for_load(&mut load, |load| load.running == 0).await;
    // A request that can be in time is served, and so is a long one without a deadline.
    let stream = client.generate(with_deadline(long(20))).await.unwrap().into_inner();
    assert_eq!(read(stream, || ()).await.unwrap().ids.len(), 1);
    assert_eq!(complete(&mut client, long(1_500)).await.unwrap().ids.len(), 1);
}

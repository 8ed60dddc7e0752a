//! Acceptance of routing fields, compressed requests, and limits of long Tokenize requests.

use stoker_proto::v1::{
    DetokenizeRequest, Resume, Routing, TokenizeRequest, control_client::ControlClient,
    tokenize_request::Input,
};
use tonic::{Code, Status, codec::CompressionEncoding, transport::Channel};

use crate::support::{Process, complete, control, inference, request};

const WORKER: [&str; 2] = ["--model", "storyteller"];

#[tokio::test(flavor = "multi_thread")]
async fn routing_fields_are_accepted_as_accept_routing_says() {
    let of = |accept: &str| {
        Process::start("stoker-worker", &[&WORKER[..], &["--accept-routing", accept]].concat())
    };
    let routed = || {
        let resume = Some(Resume::default());
        let routing = Some(Routing { attempt: 1, resume, ..Routing::default() });
        let mut request = request("Once", 1, 4);
        request.routing = routing;
        request
    };
    for accept in ["loopback", "any"] {
        let worker = of(accept);
        let mut client = inference(&worker.address).await;
        assert!(complete(&mut client, routed()).await.is_ok(), "{accept}");
    }
    let worker = of("none");
    let mut client = inference(&worker.address).await;
    let refused = complete(&mut client, routed()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("--accept-routing any"), "{refused:?}");
    assert!(complete(&mut client, request("Once", 1, 4)).await.is_ok(), "without routing");
    // Clients of a router whose routing is refused get UNAVAILABLE, since they cannot change it.
    let router = Process::start("stoker-router", &["--workers", &worker.address]);
    let mut client = inference(&router.address).await;
    let ready = async {
        loop {
            let status = complete(&mut client, request("Once", 1, 4)).await.unwrap_err();
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            if status.message().contains("does not accept calls of this router") {
                break;
            }
        }
    };
    tokio::time::timeout(crate::support::TEST_TIMEOUT, ready).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_may_be_compressed() {
    let worker = Process::start("stoker-worker", &WORKER);
    let router = Process::start("stoker-router", &["--workers", &worker.address]);
    let mut plain = inference(&worker.address).await;
    let expected = complete(&mut plain, request("Once upon a time", 3, 12)).await.unwrap();
    crate::support::wait_for_load(&mut control(&router.address).await, |load| {
        load.total_kv_blocks > 0
    })
    .await;
    for address in [&worker.address, &router.address] {
        for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
            let mut client = inference(address).await.send_compressed(encoding);
            let got = complete(&mut client, request("Once upon a time", 3, 12)).await.unwrap();
            assert_eq!(got.ids, expected.ids, "{encoding}");
            let text = Some(Input::Text("Once upon a time".repeat(100)));
            let request = TokenizeRequest { input: text, ..TokenizeRequest::default() };
            let mut control = control(address).await.send_compressed(encoding);
            assert!(!control.tokenize(request).await.unwrap().into_inner().ids.is_empty());
        }
    }
}

async fn tokenize(control: &mut ControlClient<Channel>, bytes: usize) -> Result<Vec<u32>, Status> {
    let text = "Tom has a red kite. ".chars().cycle().take(bytes).collect();
    let input = Some(Input::Text(text));
    let request = TokenizeRequest { input, ..TokenizeRequest::default() };
    control.tokenize(request).await.map(|ids| ids.into_inner().ids)
}

#[tokio::test(flavor = "multi_thread")]
async fn long_requests_have_the_same_limits_through_a_router() {
    let worker = Process::start("stoker-worker", &WORKER);
    let router = Process::start("stoker-router", &["--workers", &worker.address]);
    let (mut direct, mut routed) = (control(&worker.address).await, control(&router.address).await);
    crate::support::wait_for_load(&mut routed, |load| load.total_kv_blocks > 0).await;
    let ids = tokenize(&mut direct, 2_200_000).await.unwrap();
    assert!(ids.len() > 100_000);
    assert_eq!(tokenize(&mut routed, 2_200_000).await.unwrap(), ids);
    // The text of the response would exceed the size limit of a message.
    let request = DetokenizeRequest { ids: ids.repeat(3), ..DetokenizeRequest::default() };
    for control in [&mut direct, &mut routed] {
        let refused = control.detokenize(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert!(refused.message().starts_with("ids: the response would have"), "{refused:?}");
    }
}

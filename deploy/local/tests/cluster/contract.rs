//! The contract with clients: models, health, reflection, tokens, timings.

use std::{net::SocketAddr, time::Duration};

use futures::{StreamExt, stream};
use stoker::cluster::Cluster;
use stoker_proto::{
    SERVICES,
    v1::{
        DetokenizeRequest, DrainRequest, FinishReason, GenerateRequest, GetModelInfoRequest,
        Sampling, TokenizeRequest, tokenize_request::Input,
    },
};
use stoker_router::RouterConfig;
use stoker_shared::serve::LimitsConfig;
use stoker_worker::{ModelSource, WorkerConfig, config::AcceptRouting};
use tokio::time::timeout;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::support::{
    Process, TEST_TIMEOUT, channel, cluster, complete, control, inference, request,
};

fn seconds(duration: Option<prost_types::Duration>) -> f64 {
    duration.map_or(0.0, |d| Duration::try_from(d).unwrap().as_secs_f64())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_reports_its_model_health_and_services() {
    let cluster = cluster(2).await;
    let address = cluster.address().to_string();
    let mut control = control(&address).await;
    let info = control.get_model_info(GetModelInfoRequest::default()).await.unwrap().into_inner();
    assert_eq!((info.model.as_str(), info.quantization.as_str()), ("storyteller", "int8"));
    assert_eq!(info.digest.len(), 32);
    assert!(info.parameters > 1_000_000 && info.context_length == 1024, "{info:?}");
    let other = GetModelInfoRequest { model: "other".into() };
    assert_eq!(control.get_model_info(other).await.unwrap_err().code(), Code::NotFound);

    let mut health = HealthClient::new(channel(&address).await);
    for service in SERVICES.into_iter().chain([""]) {
        let check = HealthCheckRequest { service: service.into() };
        let status = health.check(check).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service:?}");
    }

    let mut reflection = ServerReflectionClient::new(channel(&address).await);
    let list = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..ServerReflectionRequest::default()
    };
    let replies = reflection.server_reflection_info(stream::iter([list])).await.unwrap();
    let reply = replies.into_inner().next().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = reply else { panic!("{reply:?}") };
    let names: Vec<_> = list.service.into_iter().map(|s| s.name).collect();
    for service in SERVICES.into_iter().chain(["grpc.health.v1.Health"]) {
        assert!(names.iter().any(|n| n == service), "{service} is not in {names:?}");
    }

    let text = "Once upon a time, “naïve” 🦊".to_owned();
    let input = Some(Input::Text(text.clone()));
    let tokenize = TokenizeRequest { input, ..TokenizeRequest::default() };
    let ids = control.tokenize(tokenize).await.unwrap().into_inner().ids;
    let detokenize = DetokenizeRequest { ids, ..DetokenizeRequest::default() };
    assert_eq!(control.detokenize(detokenize).await.unwrap().into_inner().text, text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_is_reproducible_consistent_and_streams_whole_characters() {
    let cluster = cluster(2).await;
    let mut client = inference(&cluster.address().to_string()).await;
    let first = complete(&mut client, request("Once upon a time", 11, 60)).await.unwrap();
    let again = complete(&mut client, request("Once upon a time", 11, 60)).await.unwrap();
    let other = complete(&mut client, request("Once upon a time", 12, 60)).await.unwrap();
    assert_eq!((&first.ids, &first.text), (&again.ids, &again.text));
    assert_ne!(first.ids, other.ids);
    assert_eq!(first.finished.reason(), FinishReason::Length);
    assert_eq!(first.finished.usage.unwrap().completion_tokens, 60);
    assert_eq!(first.finished.usage.unwrap().prompt_tokens, first.accepted.prompt_tokens);
    assert_eq!(first.accepted.seed, 11);

    let t = first.finished.timings.unwrap();
    let sum = |stages: &[Option<prost_types::Duration>]| {
        stages.iter().map(|stage| seconds(*stage)).sum::<f64>()
    };
    let worker = sum(&[t.tokenize, t.queue, t.prefill, t.decode, t.stream]);
    assert!((worker - seconds(t.worker_total)).abs() < 1e-6, "{t:?}");
    let router = sum(&[t.admission, t.route, t.attempts, t.resume]);
    assert!((router - seconds(t.total)).abs() < 1e-6, "{t:?}");
    assert!(seconds(t.worker_total) <= seconds(t.attempts), "{t:?}");
    assert_eq!(t.steps, 60);

    // Without a seed, the router draws one and reports it, so that the response can be reproduced.
    let unseeded = GenerateRequest { sampling: None, ..request("A hen", 0, 30) };
    let drawn = complete(&mut client, unseeded).await.unwrap();
    let repeated = complete(&mut client, request("A hen", drawn.accepted.seed, 30)).await.unwrap();
    assert_eq!(drawn.ids, repeated.ids);

    // A temperature at which tokens split characters: streamed text still has whole characters.
    let mut wild = request("Once", 3, 120);
    wild.sampling =
        Some(Sampling { temperature: Some(50.0), seed: Some(3), ..Sampling::default() });
    let wild = complete(&mut client, wild).await.unwrap();
    assert_eq!(wild.ids.len(), 120);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_can_be_called_directly_and_drained_by_a_call() {
    let worker = Process::start("stoker-worker", &["--model", "storyteller"]);
    let mut client = inference(&worker.address).await;
    let direct = complete(&mut client, request("Once upon a time", 11, 20)).await.unwrap();
    let routed = cluster(1).await;
    let mut client_of_router = inference(&routed.address().to_string()).await;
    let through =
        complete(&mut client_of_router, request("Once upon a time", 11, 20)).await.unwrap();
    assert_eq!(direct.ids, through.ids);

    let drained = worker.admin_client().await.drain(DrainRequest::default()).await.unwrap();
    assert_eq!(drained.into_inner().unfinished, 0);
    let refused = complete(&mut client, request("Once", 1, 5)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("draining"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_cluster_in_one_process_apply_to_its_router() {
    // At a worker, the router's stream of load reports would already reach this limit.
    let limits = LimitsConfig { max_streams_per_connection: Some(1), ..LimitsConfig::default() };
    let config = WorkerConfig { limits, accept_routing: AcceptRouting::None, ..Default::default() };
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    let cluster =
        Cluster::start(any.into(), ModelSource::Bundled, 1, config, RouterConfig::default())
            .await
            .unwrap();
    let mut client = inference(&cluster.address().to_string()).await;
    let response = complete(&mut client, request("Once", 1, 4));
    assert_eq!(timeout(TEST_TIMEOUT, response).await.unwrap().unwrap().ids.len(), 4);
}

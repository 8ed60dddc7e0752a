//! `stoker drain`: of a process, and of a worker through its router.

use tonic::Code;

use crate::{
    status::wait_for_status,
    support::{Process, complete, inference, read, request, stoker},
};

/// Profile of a device whose step is slow enough for a response of some hundred tokens to outlast a
/// few commands.
const STEADY: &str = r#"step = "20ms""#;
/// Tokens of such a response.
const LONG: u32 = 400;

fn worker() -> Process {
    Process::start("stoker-worker", &["--simulate", STEADY])
}

async fn router(workers: &[&Process]) -> Process {
    let addresses: Vec<_> = workers.iter().map(|worker| worker.address.as_str()).collect();
    let router = Process::start("stoker-router", &["--workers", &addresses.join(",")]);
    for worker in workers {
        wait_for_status(&router, &worker.address, "state", &"live".into()).await;
    }
    router
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_drains_a_worker_for_itself() {
    let (one, two) = (worker(), worker());
    let router = router(&[&one, &two]).await;
    let mut client = inference(&router.address).await;
    let mut stream = client.generate(request("Once", 1, LONG)).await.unwrap().into_inner();
    let accepted = stream.message().await.unwrap().unwrap();
    let Some(stoker_proto::v1::generate_response::Event::Accepted(accepted)) = accepted.event
    else {
        panic!("{accepted:?}")
    };
    let (leaving, staying) = if accepted.worker == one.id { (one, two) } else { (two, one) };

    // The response continues after the timeout.
    let brief = ["drain", &leaving.id, "--endpoint", &router.admin, "--timeout", "50ms"];
    let (code, out, error) = stoker(&brief).await;
    assert_eq!((code, out.as_str()), (Some(1), ""), "{error}");
    assert!(error.contains("1 were still running after 50ms (--timeout)"), "{error}");
    wait_for_status(&router, &leaving.address, "state", &"draining".into()).await;
    for seed in 0..8 {
        let completion = complete(&mut client, request("Late", seed, 2)).await.unwrap();
        assert_eq!(completion.accepted.worker, staying.id);
    }
    // The worker itself does not know, so that other routers and clients are not affected.
    let direct = complete(&mut inference(&leaving.address).await, request("Once", 1, 2)).await;
    assert_eq!(direct.unwrap().ids.len(), 2);

    // Without a timeout, the command waits for the response. By its address this time.
    let whole = tokio::spawn(async move {
        let mut tokens = 0;
        while let Some(event) = stream.message().await.unwrap() {
            if let Some(stoker_proto::v1::generate_response::Event::Token(delta)) = event.event {
                tokens += delta.ids.len();
            }
        }
        tokens
    });
    let (code, out, error) =
        stoker(&["drain", &leaving.address, "--endpoint", &router.admin]).await;
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains(&leaving.address) && out.contains("none is running"), "{out}");
    assert_eq!(whole.await.unwrap(), LONG as usize, "the response was not cut");
    let drained = wait_for_status(&router, &leaving.address, "state", &"draining".into()).await;
    assert_eq!(drained["outstanding_requests"], 0);

    // Another process at the same address is used.
    let address = leaving.address.clone();
    drop(leaving);
    let restarted = Process::start("stoker-worker", &["--simulate", STEADY, "--listen", &address]);
    wait_for_status(&router, &restarted.address, "state", &"live".into()).await;

    // The only other worker drains too: the router says why it does not serve.
    for worker in [&staying, &restarted] {
        let (code, _, error) = stoker(&["drain", &worker.id, "--endpoint", &router.admin]).await;
        assert_eq!(code, Some(0), "{error}");
    }
    let refused = complete(&mut client, request("Once", 1, 2)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("draining"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_drains_at_its_own_admin_listener() {
    let worker = worker();
    let router = router(&[&worker]).await;
    let mut client = inference(&router.address).await;
    let stream = client.generate(request("Once", 1, LONG)).await.unwrap().into_inner();
    for (process, what) in [(&worker, "worker"), (&router, "router")] {
        let brief = ["drain", "--endpoint", &process.admin, "--timeout", "50ms"];
        let (code, _, error) = stoker(&brief).await;
        assert_eq!(code, Some(1), "{what}: {error}");
        assert!(error.contains("1 were still running after 50ms"), "{what}: {error}");
    }
    assert_eq!(read(stream, || ()).await.unwrap().ids.len(), LONG as usize);
    for process in [&worker, &router] {
        let (code, out, error) = stoker(&["drain", "--endpoint", &process.admin]).await;
        assert_eq!(code, Some(0), "{error}");
        let expected = format!("{} takes no new requests", process.admin);
        assert!(out.starts_with(&expected) && out.contains("none is running"), "{out}");
        let mut client = inference(&process.address).await;
        let refused = complete(&mut client, request("Once", 1, 2)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_name_the_worker_and_what_to_give() {
    let worker = worker();
    let router = router(&[&worker]).await;
    let known = format!("choose one of: {}", worker.id);
    for (arguments, code, parts) in [
        (&["drain", "worker-9", "--endpoint", &router.admin][..], 1, &["`worker-9`", &known][..]),
        (&["drain", "worker-9", "--endpoint", &worker.admin], 1, &["listener of a router"]),
        (&["drain", "", "--endpoint", &router.admin], 2, &["WORKER is empty"]),
        (&["drain", "--endpoint", &router.address], 1, &["--admin-listen", &router.address]),
        (&["drain", "--endpoint", &router.admin, "--timeout", "soon"], 2, &["--timeout", "soon"]),
    ] {
        let (found, out, error) = stoker(arguments).await;
        assert_eq!((found, out.as_str()), (Some(code), ""), "{arguments:?}: {error}");
        for part in parts {
            assert!(error.contains(part), "{part} is not in {error}");
        }
    }
    wait_for_status(&router, &worker.address, "state", &"live".into()).await;
}

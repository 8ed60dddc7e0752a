//! Hedged calls, and calls whose worker stalls.

use super::*;

/// Makes a hedged call. `first` and `second` are the seconds until the token of each attempt;
/// `None` is never.
async fn hedged(first: Option<u64>, second: Option<u64>) -> (Vec<GenerateResponse>, Duration) {
    let config = ResumeConfig { hedge_after: Some(Duration::from_secs(1)), ..Default::default() };
    let one = (accepted("a", 1), first);
    let two = (accepted("b", 1), second);
    let replies = Arc::new(Mutex::new([one, two].into_iter()));
    let (slow, fast) = (worker("a", "m", "d"), worker("b", "m", "d"));
    let below = service_fn(move |call: Call| {
        let (accepted, after) = replies.lock().unwrap().next().unwrap();
        call.selected.set(if call.attempt == 1 { &slow } else { &fast });
        let rest = async move {
            match after {
                Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
                None => std::future::pending().await,
            }
            stream::iter([Ok(token()), Ok(finished())])
        };
        let events = stream::iter([Ok(accepted)]).chain(rest.into_stream().flatten());
        async { Ok::<EventStream, ServiceError>(events.boxed()) }
    });
    let pool = Pool::fixed(&[worker("a", "m", "d"), worker("b", "m", "d")]);
    let context = ResumeContext::new(&config, &pool, &Metrics::default());
    let began = Instant::now();
    let mut call = call();
    call.request.model = "m".into();
    let stream = respond(below, context, call).await.unwrap();
    let items: Vec<_> = stream.map(Result::unwrap).collect().await;
    (items, began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_hedge_has_the_limit_that_the_first_worker_set() {
    let config = ResumeConfig { hedge_after: Some(Duration::from_secs(1)), ..Default::default() };
    let limits = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&limits);
    let workers = [worker("a", "m", "d"), worker("b", "m", "d")];
    let pool = Pool::fixed(&workers);
    let below = service_fn(move |call: Call| {
        let stopping = call.request.stopping.as_ref();
        seen.lock().unwrap().push((stopping.and_then(|s| s.max_tokens), call.sequence_tokens));
        let first = call.attempt == 1;
        call.selected.set(&workers[usize::from(!first)]);
        let Some(Event::Accepted(accepted)) = accepted("a", 10).event else { panic!() };
        let first_events = event(Event::Accepted(Accepted { max_tokens: 500, ..accepted }));
        let rest =
            if first { stream::pending().boxed() } else { events([Ok(token()), Ok(finished())]) };
        async {
            Ok::<EventStream, ServiceError>(stream::iter([Ok(first_events)]).chain(rest).boxed())
        }
    });
    let mut call = call();
    call.request.model = "m".into();
    let context = ResumeContext::new(&config, &pool, &Metrics::default());
    let stream = respond(below, context, call).await.unwrap();
    let items: Vec<_> = stream.collect().await;
    assert!(items.iter().all(Result::is_ok), "{items:?}");
    assert_eq!(*limits.lock().unwrap(), [(None, None), (Some(500), Some(510))]);
}

#[tokio::test(start_paused = true)]
async fn the_faster_of_two_attempts_wins_and_sends_its_accepted_event() {
    let (items, took) = hedged(Some(60), Some(2)).await;
    assert_eq!(took, Duration::from_secs(3));
    assert_eq!(items[..3], [accepted("a", 1), accepted("b", 1), token()]);
    assert_eq!(items.len(), 4);

    let (items, took) = hedged(Some(2), Some(60)).await;
    assert_eq!((items.len(), took), (3, Duration::from_secs(2)));
    let (items, took) = hedged(Some(0), None).await;
    assert_eq!((items.len(), took), (3, Duration::ZERO));
}

/// Returns the number of attempts of a call whose first worker stalls for ten seconds after its
/// first token.
async fn attempts_with_a_stall(max_resumes: u32) -> u32 {
    let config = ResumeConfig { max_resumes, ..Default::default() };
    let workers = [worker("a", "m", "d"), worker("b", "m", "d")];
    workers[0].liveness.set_stalled(true);
    let pool = Pool::fixed(&workers);
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let below = service_fn(move |call: Call| {
        let first = counted.fetch_add(1, Ordering::Relaxed) == 0;
        call.selected.set(&workers[usize::from(!first)]);
        let rest = async move {
            tokio::time::sleep(Duration::from_secs(if first { 10 } else { 0 })).await;
            stream::iter([Ok(token()), Ok(finished())])
        };
        let first_events = stream::iter([Ok(accepted("w", 1)), Ok(token())]);
        let events = first_events.chain(rest.into_stream().flatten());
        async { Ok::<EventStream, ServiceError>(events.boxed()) }
    });
    let mut call = call();
    call.request.model = "m".into();
    let context = ResumeContext::new(&config, &pool, &Metrics::default());
    let stream = respond(below, context, call).await.unwrap();
    let items: Vec<_> = stream.collect().await;
    assert!(items.iter().all(Result::is_ok), "{items:?}");
    calls.load(Ordering::Relaxed)
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_resumes_left_waits_for_its_worker() {
    assert_eq!(attempts_with_a_stall(1).await, 2);
    assert_eq!(attempts_with_a_stall(0).await, 1);
}

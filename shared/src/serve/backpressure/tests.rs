#![allow(clippy::unwrap_used, reason = "tests")]

use futures::stream;
use stoker_proto::v1::Load;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(30);

fn event(step: u64) -> Result<Load, Status> {
    Ok(Load { step, ..Load::default() })
}

/// Dropped when the work is done.
struct Work(Arc<()>);

/// Returns a response of `events` events, one every 10 ms, and references to its work and its
/// guard.
fn response(
    events: u64,
    memory: &MemoryBudget,
) -> (Backpressure, Response<Load>, Arc<()>, Arc<()>) {
    let backpressure = Backpressure::new(TIMEOUT, memory.clone());
    let (work, guard) = (Arc::new(()), Arc::new(()));
    let holds = Work(Arc::clone(&work));
    let events = stream::iter(0..events).then(move |step| {
        let _ = &holds.0;
        async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            event(step)
        }
    });
    let response = backpressure.watch(events.boxed(), Box::new(Arc::clone(&guard)));
    (backpressure, response, work, guard)
}

fn is_released(guard: &Arc<()>) -> bool {
    Arc::strong_count(guard) == 1
}

#[tokio::test(start_paused = true)]
async fn work_is_released_when_done_even_if_the_client_does_not_read() {
    let memory = MemoryBudget::new(1 << 20);
    let (_backpressure, mut response, work, guard) = response(50, &memory);
    assert_eq!(response.next().await.unwrap().unwrap().step, 0);
    assert!(!is_released(&work));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(is_released(&work) && !is_released(&guard) && memory.reserved() > 0);
    // The client polls again, and receives all events.
    let rest: Vec<_> = response.by_ref().map(|event| event.unwrap().step).collect().await;
    assert_eq!(rest, (1..50).collect::<Vec<_>>());
    assert!(is_released(&guard) && memory.reserved() == 0);
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_not_read_is_ended_with_an_error() {
    let memory = MemoryBudget::new(1 << 20);
    let (backpressure, mut response, work, guard) = response(1_000_000, &memory);
    response.next().await.unwrap().unwrap();
    let since = Instant::now();
    while !is_released(&guard) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(
        since.elapsed() >= TIMEOUT && since.elapsed() < TIMEOUT + SLOW_READER_DELAY,
        "{:?}",
        since.elapsed()
    );
    assert!(is_released(&work) && memory.reserved() == 0 && backpressure.ended().get() == 1);
    let error = response.next().await.unwrap().unwrap_err();
    assert_eq!(error.code(), tonic::Code::Cancelled);
    assert!(response.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_read_occasionally_is_not_ended() {
    let memory = MemoryBudget::new(1 << 20);
    let (backpressure, mut response, _work, _guard) = response(20, &memory);
    for step in 0..20 {
        assert_eq!(response.next().await.unwrap().unwrap().step, step);
        tokio::time::sleep(TIMEOUT - SLOW_READER_DELAY).await;
    }
    assert!(response.next().await.is_none() && backpressure.ended().get() == 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waited_and_does_not_poll_for_a_ready_event_is_slow() {
    let memory = MemoryBudget::new(1 << 20);
    let (_backpressure, mut response, work, guard) = response(50, &memory);
    // Like HTTP/2 with a frame that it cannot send yet.
    assert!(futures::poll!(response.next()).is_pending());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(is_released(&work) && !is_released(&guard) && memory.reserved() > 0);
    let all: Vec<_> = response.by_ref().map(|event| event.unwrap().step).collect().await;
    assert_eq!(all, (0..50).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waits_for_the_next_event_is_not_slow() {
    let backpressure = Backpressure::new(TIMEOUT, MemoryBudget::new(1 << 20));
    let late = stream::once(async {
        tokio::time::sleep(TIMEOUT * 3).await;
        event(7)
    });
    let mut response = backpressure.watch(late.boxed(), Box::new(()));
    assert_eq!(response.next().await.unwrap().unwrap().step, 7);
}

#[tokio::test(start_paused = true)]
async fn buffered_events_stay_within_the_memory_budget() {
    let memory = MemoryBudget::new(1 << 10);
    let (_backpressure, mut response, work, _guard) = response(1_000, &memory);
    response.next().await.unwrap().unwrap();
    tokio::time::sleep(TIMEOUT / 2).await;
    assert!(!is_released(&work) && memory.reserved() <= 1 << 10);
    let rest: Vec<_> = response.by_ref().map(|event| event.unwrap().step).collect().await;
    assert_eq!(rest, (1..1_000).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_response_releases_everything() {
    let memory = MemoryBudget::new(1 << 20);
    let (_backpressure, mut response, work, guard) = response(1_000_000, &memory);
    response.next().await.unwrap().unwrap();
    tokio::time::sleep(SLOW_READER_DELAY * 3).await;
    assert!(memory.reserved() > 0);
    drop(response);
    assert!(is_released(&work) && is_released(&guard) && memory.reserved() == 0);
}

//! The requests that run, and those that ended recently: what operators ask a router about one
//! request, without a collector of traces.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use stoker_proto::{
    duration::{or_zero, to_wire},
    v1::{ListRequestsResponse, RequestRecord, RouterTotals, Timings},
};
use stoker_shared::{VERSION, names::label::OK, serve::admin::RequestFilter};
use tokio::time::Instant;

use crate::call::{Attempts, Call, Timeline};

/// Handle to the requests of a router. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Requests(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Maximum number of finished requests that are kept.
    capacity: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Number of the next request.
    next: u64,
    /// Running requests by number, and thus by arrival.
    running: BTreeMap<u64, Arc<Progress>>,
    /// The last requests that ended, the oldest first.
    finished: VecDeque<Arc<RequestRecord>>,
    totals: RouterTotals,
}

/// A running request.
#[derive(Debug)]
pub(crate) struct Progress {
    request_id: Box<str>,
    trace_id: Option<String>,
    tenant: Arc<str>,
    arrived: Instant,
    arrived_at: SystemTime,
    served: Arc<OnceLock<Arc<str>>>,
    timeline: Timeline,
    attempts: Attempts,
    prompt_tokens: AtomicU32,
    tokens: AtomicU64,
    first_token: OnceLock<Duration>,
}

/// How a request ended.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    /// Finish reason, or reason of the error.
    pub(crate) outcome: &'static str,
    /// Name of the gRPC status code.
    pub(crate) code: &'static str,
    /// Number of generated tokens.
    pub(crate) tokens: u64,
    pub(crate) cached_prompt_tokens: u32,
    pub(crate) timings: Option<Timings>,
}

impl Requests {
    /// Keeps the last `capacity` requests that ended.
    pub(crate) fn new(capacity: u32) -> Self {
        Self(Arc::new(Shared { capacity: capacity as usize, state: Mutex::default() }))
    }

    /// Adds a request that has arrived. It runs until [`RunningRequest::end`].
    pub(crate) fn begin(&self, call: &Call, request_id: &str) -> RunningRequest {
        let progress = Arc::new(Progress {
            request_id: request_id.into(),
            trace_id: call.trace.trace_id().filter(|_| call.trace.is_sampled()),
            tenant: Arc::clone(&call.tenant),
            arrived: call.arrived,
            arrived_at: call.timeline.time_of(call.arrived),
            served: Arc::clone(&call.served),
            timeline: call.timeline.clone(),
            attempts: call.attempts.clone(),
            prompt_tokens: AtomicU32::new(0),
            tokens: AtomicU64::new(0),
            first_token: OnceLock::new(),
        });
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.running.insert(number, Arc::clone(&progress));
        RunningRequest { requests: self.clone(), number, progress }
    }

    /// Returns the requests that `wanted` describes, the newest first, and the totals.
    pub(crate) fn list(&self, wanted: &RequestFilter) -> ListRequestsResponse {
        let now = Instant::now();
        let named = |id: &str| wanted.request_id.as_deref().is_none_or(|wanted| wanted == id);
        let (running, finished, mut totals) = {
            let state = self.lock();
            let long =
                |record: &&Arc<RequestRecord>| or_zero(record.duration) >= wanted.min_duration;
            let finished = state.finished.iter().rev().filter(|r| named(&r.request_id));
            let finished: Vec<_> = finished.filter(long).take(wanted.limit).cloned().collect();
            (state.running.values().cloned().collect::<Vec<_>>(), finished, state.totals)
        };
        // Copied without the lock, which every request takes.
        let mut requests: Vec<_> = finished.iter().map(|record| (**record).clone()).collect();
        totals.running = u32::try_from(running.len()).unwrap_or(u32::MAX);
        for progress in &running {
            totals.generated_tokens += progress.tokens.load(Ordering::Relaxed);
        }
        let long = |progress: &&Arc<Progress>| now - progress.arrived >= wanted.min_duration;
        let running = running.iter().rev().filter(|progress| named(&progress.request_id));
        requests.extend(running.filter(long).take(wanted.limit).map(|one| one.record(now)));
        let arrival = |record: &RequestRecord| {
            record.arrived.map(|at| (at.seconds, at.nanos)).unwrap_or_default()
        };
        requests.sort_by_key(|record| std::cmp::Reverse(arrival(record)));
        requests.truncate(wanted.limit);
        ListRequestsResponse {
            requests,
            version: VERSION.into(),
            capacity: u32::try_from(self.0.capacity).unwrap_or(u32::MAX),
            totals: Some(totals),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    /// Returns the record of the request at `now`, without its end.
    fn record(&self, now: Instant) -> RequestRecord {
        RequestRecord {
            request_id: self.request_id.to_string(),
            trace_id: self.trace_id.clone().unwrap_or_default(),
            tenant: self.tenant.to_string(),
            model: self.served.get().map(ToString::to_string).unwrap_or_default(),
            arrived: Some(self.arrived_at.into()),
            duration: to_wire(now - self.arrived),
            prompt_tokens: self.prompt_tokens.load(Ordering::Relaxed),
            generated_tokens: self.tokens.load(Ordering::Relaxed),
            time_to_first_token: self.first_token.get().copied().and_then(to_wire),
            stages: self.timeline.records(self.arrived, now),
            attempts: self.attempts.records(self.arrived, now),
            ..RequestRecord::default()
        }
    }
}

/// A request while it runs.
#[derive(Debug)]
pub(crate) struct RunningRequest {
    requests: Requests,
    number: u64,
    progress: Arc<Progress>,
}

impl RunningRequest {
    /// Records the number of prompt tokens.
    pub(crate) fn accepted(&self, prompt_tokens: u32) {
        self.progress.prompt_tokens.store(prompt_tokens, Ordering::Relaxed);
    }

    /// Records `tokens` that arrived at `now`.
    pub(crate) fn add_tokens(&self, tokens: usize, now: Instant) {
        self.progress.first_token.get_or_init(|| now - self.progress.arrived);
        self.progress.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
    }

    /// Returns the number of tokens so far.
    pub(crate) fn tokens(&self) -> u64 {
        self.progress.tokens.load(Ordering::Relaxed)
    }

    /// Returns the time from arrival to the first token.
    pub(crate) fn first_token(&self) -> Option<Duration> {
        self.progress.first_token.get().copied()
    }

    /// Ends the request, whose stages have ended and took `total`.
    pub(crate) fn end(&self, total: Duration, ending: Ending) {
        let mut record = self.progress.record(self.progress.arrived + total);
        for attempt in &mut record.attempts {
            // That of a cancelled request is dropped at any moment now.
            attempt.running = false;
        }
        record.outcome = ending.outcome.into();
        record.code = ending.code.into();
        record.generated_tokens = ending.tokens;
        record.cached_prompt_tokens = ending.cached_prompt_tokens;
        record.timings = ending.timings;
        let mut state = self.requests.lock();
        state.running.remove(&self.number);
        state.totals.finished += 1;
        state.totals.failed += u64::from(ending.code != OK);
        state.totals.prompt_tokens += u64::from(record.prompt_tokens);
        state.totals.generated_tokens += self.tokens();
        let capacity = self.requests.0.capacity;
        if capacity > 0 {
            if state.finished.len() >= capacity {
                state.finished.pop_front();
            }
            state.finished.push_back(Arc::new(record));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use stoker_proto::duration::from_wire;

    use super::*;
    use crate::{call::Stage, tests::support::call};

    const SECOND: Duration = Duration::from_secs(1);

    fn ids(requests: &Requests, wanted: &RequestFilter) -> Vec<String> {
        requests.list(wanted).requests.into_iter().map(|record| record.request_id).collect()
    }

    fn all() -> RequestFilter {
        RequestFilter { limit: 10, ..RequestFilter::default() }
    }

    fn end(request: &RunningRequest, call: &Call) {
        let total = call.timeline.end().total();
        let ending = Ending { outcome: "stop", code: OK, ..Ending::default() };
        request.end(total, ending);
    }

    #[tokio::test(start_paused = true)]
    async fn running_and_recent_requests_are_listed_newest_first() {
        let requests = Requests::new(2);
        let mut running = Vec::new();
        for id in ["a", "b", "c", "d"] {
            let call = call();
            running.push((requests.begin(&call, id), call));
            tokio::time::advance(SECOND).await;
        }
        assert_eq!(ids(&requests, &all()), ["d", "c", "b", "a"]);
        for (request, call) in &running[..3] {
            end(request, call);
        }
        assert_eq!(ids(&requests, &all()), ["d", "c", "b"], "two that ended are kept");
        let named = RequestFilter { request_id: Some("b".into()), ..all() };
        assert_eq!(ids(&requests, &named), ["b"]);
        let long = RequestFilter { min_duration: 3 * SECOND, ..all() };
        assert_eq!(ids(&requests, &long), ["b"]);
        assert_eq!(ids(&requests, &RequestFilter { limit: 1, ..all() }), ["d"]);
        let totals = requests.list(&all()).totals.unwrap();
        assert_eq!((totals.running, totals.finished, totals.failed), (1, 3, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_running_request_shows_where_it_is() {
        let requests = Requests::new(1);
        let call = call();
        let request = requests.begin(&call, "a");
        tokio::time::advance(SECOND).await;
        call.timeline.enter(Stage::Route);
        tokio::time::advance(SECOND).await;
        request.accepted(7);
        request.add_tokens(2, Instant::now());
        let record = requests.list(&all()).requests.remove(0);
        assert_eq!((record.code.as_str(), record.prompt_tokens), ("", 7));
        assert_eq!((record.generated_tokens, from_wire(record.duration)), (2, Some(2 * SECOND)));
        let stages = record.stages.iter().map(|stage| from_wire(stage.duration).unwrap());
        assert_eq!(stages.collect::<Vec<_>>(), [SECOND, SECOND]);
        assert_eq!(requests.list(&all()).totals.unwrap().generated_tokens, 2);
        end(&request, &call);
        assert_eq!(requests.list(&all()).totals.unwrap().generated_tokens, 2);
    }

    #[tokio::test]
    async fn without_capacity_only_running_requests_are_listed() {
        let requests = Requests::new(0);
        let call = call();
        let request = requests.begin(&call, "a");
        assert_eq!(ids(&requests, &all()), ["a"]);
        end(&request, &call);
        assert!(ids(&requests, &all()).is_empty());
    }
}

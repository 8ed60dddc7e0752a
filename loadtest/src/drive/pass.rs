//! One pass over a plan: streams that send requests and read responses, and a loop that accumulates
//! results.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use stoker_shared::shutdown::Signals;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, interval, sleep},
};

use crate::{
    arrivals::schedule::{Arrivals, End, Schedule, ScheduledRequest},
    drive::driver::{Driver, DriverStats},
    measure::{objectives::Objectives, results::Results},
    requests::plan::Plan,
    targets::{
        Target,
        outcome::{CallEnd, CallOutcome, LiveCounters},
        request::Turn,
    },
};

/// Capacity of the channel of outcomes.
const CHANNEL_CAPACITY: usize = 1_024;
/// Interval at which the observer sees the progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// The load: concurrency, arrival times and deadline.
#[derive(Debug, Clone)]
pub struct LoadConfig {
    /// Maximum number of concurrent streams.
    pub concurrency: NonZeroUsize,
    /// Arrival times of requests, or of conversations.
    pub arrivals: Arrivals,
    /// Deadline of a request.
    pub deadline: Option<Duration>,
    /// Time between a response and the next turn of a conversation.
    pub think_time: Duration,
    /// Objectives of latency.
    pub objectives: Option<Objectives>,
    /// Ends the pass early when more requests than this failed or missed the objectives.
    pub max_missed: Option<u64>,
}

impl LoadConfig {
    /// Returns the number of streams: at most one per conversation of `turns` requests.
    pub fn streams(&self, turns: u64) -> usize {
        let max = self.concurrency.get();
        match self.arrivals.end {
            End::Requests(count) => {
                usize::try_from(count.div_ceil(turns.max(1))).unwrap_or(max).min(max)
            }
            End::After(_) => max,
        }
    }
}

/// Sees outcomes and progress of passes.
pub trait Observer {
    /// Called before a pass, which `label` describes if there are several.
    fn start(&mut self, _load: &LoadConfig, _label: &str) {}

    /// Called with every outcome.
    fn outcome(&mut self, _outcome: &CallOutcome) {}

    /// Called regularly.
    fn progress(&mut self, _results: &Results, _live: &LiveCounters, _elapsed: Duration) {}
}

/// The result of a pass.
#[derive(Debug)]
pub struct PassResult {
    /// The measurements.
    pub results: Results,
    /// Time from the start of the pass to the end of the last response.
    pub duration: Duration,
    /// Number of streams that were cut off. They are not part of `results`.
    pub cut_off: u64,
    /// Whether a signal ended the pass.
    pub interrupted: bool,
    /// Whether too many requests missed the objectives for the rest to matter.
    pub too_many_missed: bool,
    /// How the driver did.
    pub driver: DriverStats,
}

impl PassResult {
    /// Returns the number of sent requests.
    pub fn sent(&self) -> u64 {
        self.results.count() + self.cut_off
    }

    /// Returns whether all responses are complete, except for those that were to be cancelled.
    pub fn is_good(&self) -> bool {
        !self.interrupted && self.results.complete + self.results.cancelled == self.sent()
    }
}

/// Sends the requests of `plan` as `load` defines. A signal ends the pass early.
pub async fn pass(
    target: &Target,
    plan: &Arc<Plan>,
    load: &LoadConfig,
    signals: &mut Signals,
    observer: &mut impl Observer,
) -> PassResult {
    let started = Instant::now();
    let schedule = Schedule::new(load.arrivals.clone(), plan.turns(), started);
    let (done, mut outcomes) = mpsc::channel(CHANNEL_CAPACITY);
    let shared = Arc::new(Shared {
        target: target.clone(),
        plan: Arc::clone(plan),
        schedule,
        deadline: load.deadline,
        think_time: load.think_time,
        live: LiveCounters::default(),
        driver: Driver::start(),
    });
    let mut streams = JoinSet::new();
    for _ in 0..load.streams(plan.turns()) {
        streams.spawn(stream(Arc::clone(&shared), done.clone()));
    }
    drop(done);
    let mut heartbeat = JoinSet::new();
    let driver = Arc::clone(&shared);
    heartbeat.spawn(async move { driver.driver.heartbeat().await });

    let mut results = Results::new(started, load.objectives);
    let mut tick = interval(PROGRESS_INTERVAL);
    let (mut interrupted, mut too_many_missed) = (false, false);
    loop {
        tokio::select! {
            outcome = outcomes.recv() => {
                let Some(outcome) = outcome else { break };
                observer.outcome(&outcome);
                results.add(&outcome);
                too_many_missed = load.max_missed.is_some_and(|max| results.missed() > max);
                if too_many_missed {
                    break;
                }
            }
            _ = tick.tick() => observer.progress(&results, &shared.live, started.elapsed()),
            _ = signals.next() => {
                interrupted = true;
                break;
            }
        }
    }
    let duration = started.elapsed();
    let driver = shared.driver.stats();
    // Cut-off streams have ended before their remaining outcomes are counted.
    streams.shutdown().await;
    while let Ok(outcome) = outcomes.try_recv() {
        observer.outcome(&outcome);
        results.add(&outcome);
    }
    let cut_off = shared.live.sent().saturating_sub(results.count());
    PassResult { results, duration, cut_off, interrupted, too_many_missed, driver }
}

/// What the streams of a pass share.
struct Shared {
    target: Target,
    plan: Arc<Plan>,
    schedule: Schedule,
    deadline: Option<Duration>,
    think_time: Duration,
    live: LiveCounters,
    driver: Driver,
}

/// Sends one conversation after another.
async fn stream(shared: Arc<Shared>, done: mpsc::Sender<CallOutcome>) {
    while let Some(scheduled) = shared.schedule.next_request() {
        if conversation(&shared, scheduled, &done).await.is_none() {
            return;
        }
    }
}

/// Sends the requests of a conversation, each after the response to the one before. The first failure
/// ends it. Returns `None` if the pass is over.
async fn conversation(
    shared: &Shared,
    ScheduledRequest { index, at }: ScheduledRequest,
    done: &mpsc::Sender<CallOutcome>,
) -> Option<()> {
    let mut request = shared.plan.request(index);
    if let Some(at) = at {
        shared.driver.wait_until(at).await;
    }
    let mut start = at.unwrap_or_else(Instant::now);
    let last = index + shared.plan.turns() - 1;
    loop {
        let outcome = shared.target.call(&request, start, shared.deadline, &shared.live).await;
        let continues = request.index < last && matches!(outcome.end, CallEnd::Complete(_));
        let response = if continues { outcome.response.text.clone() } else { String::new() };
        done.send(outcome).await.ok()?;
        if !continues {
            return Some(());
        }
        sleep(shared.think_time).await;
        if !shared.schedule.allows(request.index + 1) {
            return Some(());
        }
        let mut next = shared.plan.request(request.index + 1);
        next.history = request.history;
        next.history.push(Turn { prompt: request.prompt, response });
        request = next;
        start = Instant::now();
    }
}

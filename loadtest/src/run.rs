//! One pass over a plan: streams that send requests and read responses, and a loop that accumulates
//! results.

use std::{
    num::NonZeroUsize,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use stoker_shared::{client::Client, shutdown::Signals};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, interval, sleep_until},
};

use crate::{
    call::{CallOutcome, LiveCounters, call},
    objectives::Objectives,
    plan::Plan,
    progress::ProgressLine,
    results::Results,
    schedule::{Arrivals, End, Schedule},
};

/// Capacity of the channel of outcomes.
const CHANNEL_CAPACITY: usize = 1_024;
/// Update interval of the progress line.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// The load: concurrency, arrival times and deadline.
#[derive(Debug, Clone)]
pub struct LoadConfig {
    /// Maximum number of concurrent streams.
    pub concurrency: NonZeroUsize,
    /// Arrival times of requests.
    pub arrivals: Arrivals,
    /// Deadline of a request.
    pub deadline: Option<Duration>,
    /// Objectives of latency.
    pub objectives: Option<Objectives>,
}

impl LoadConfig {
    /// Returns the number of streams: at most one per request.
    pub fn streams(&self) -> usize {
        let max = self.concurrency.get();
        match self.arrivals.end {
            End::Requests(count) => usize::try_from(count).unwrap_or(max).min(max),
            End::After(_) => max,
        }
    }
}

/// The result of a pass.
#[derive(Debug)]
pub struct PassResult {
    /// The measurements.
    pub results: Results,
    /// Time from the start of the pass to the end of the last response.
    pub duration: Duration,
    /// Number of streams that a signal cut off. They are not part of `results`.
    pub cut_off: u64,
    /// Whether a signal ended the pass.
    pub interrupted: bool,
}

impl PassResult {
    /// Returns the number of sent requests.
    pub fn sent(&self) -> u64 {
        self.results.count() + self.cut_off
    }

    /// Returns whether all responses are complete.
    pub fn is_good(&self) -> bool {
        !self.interrupted && self.results.complete == self.sent()
    }
}

/// Sends the requests of `plan` as `load` defines, and calls `each` with every outcome. A signal
/// ends the pass early.
pub async fn pass(
    client: &Client,
    plan: &Arc<Plan>,
    load: &LoadConfig,
    progress: &mut ProgressLine,
    signals: &mut Signals,
    mut each: impl FnMut(&CallOutcome),
) -> PassResult {
    let started = Instant::now();
    let schedule = Arc::new(Schedule::new(load.arrivals.clone(), started));
    let live = Arc::new(LiveCounters::default());
    let (done, mut outcomes) = mpsc::channel(CHANNEL_CAPACITY);
    let mut streams = JoinSet::new();
    for _ in 0..load.streams() {
        let stream = Stream {
            client: client.clone(),
            plan: Arc::clone(plan),
            schedule: Arc::clone(&schedule),
            deadline: load.deadline,
            live: Arc::clone(&live),
            done: done.clone(),
        };
        streams.spawn(stream.run());
    }
    drop(done);

    let mut results = Results::new(load.objectives);
    let mut count = |outcome: CallOutcome, results: &mut Results| {
        each(&outcome);
        results.add(&outcome);
    };
    let mut tick = interval(PROGRESS_INTERVAL);
    let interrupted = loop {
        tokio::select! {
            outcome = outcomes.recv() => match outcome {
                Some(outcome) => count(outcome, &mut results),
                None => break false,
            },
            _ = tick.tick() => progress.show(&results, &live, started.elapsed()),
            _ = signals.next() => break true,
        }
    };
    let duration = started.elapsed();
    // Cut-off streams have ended before their remaining outcomes are counted.
    streams.shutdown().await;
    while let Ok(outcome) = outcomes.try_recv() {
        count(outcome, &mut results);
    }
    let cut_off = live.sent.load(Ordering::Relaxed).saturating_sub(results.count());
    PassResult { results, duration, cut_off, interrupted }
}

/// A stream, which sends one request after another.
struct Stream {
    client: Client,
    plan: Arc<Plan>,
    schedule: Arc<Schedule>,
    deadline: Option<Duration>,
    live: Arc<LiveCounters>,
    done: mpsc::Sender<CallOutcome>,
}

impl Stream {
    async fn run(self) {
        while let Some(scheduled) = self.schedule.next_request() {
            let request = self.plan.request(scheduled.index);
            let start = match scheduled.at {
                Some(at) => {
                    sleep_until(at).await;
                    at
                }
                None => Instant::now(),
            };
            let outcome =
                call(&self.client, request, scheduled.index, start, self.deadline, &self.live)
                    .await;
            if self.done.send(outcome).await.is_err() {
                return;
            }
        }
    }
}

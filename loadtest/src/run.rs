//! One pass over a plan: streams that send and read, and one place that counts what came.

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
    call::{Live, Outcome, call},
    plan::Plan,
    progress::Progress,
    results::Results,
    schedule::{Arrivals, End, Schedule},
};

/// Outcomes that may wait to be counted.
const OUTCOMES: usize = 1_024;
/// How often a terminal is told how it goes.
const TICK: Duration = Duration::from_millis(100);

/// How much is sent at once, when, and how long an answer may take.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Streams at once.
    pub concurrency: NonZeroUsize,
    /// When requests begin.
    pub arrivals: Arrivals,
    /// How long an answer may take.
    pub deadline: Option<Duration>,
}

impl Load {
    /// Streams that it takes: no more than there are requests.
    pub fn streams(&self) -> usize {
        let most = self.concurrency.get();
        match self.arrivals.end {
            End::Requests(count) => usize::try_from(count).unwrap_or(most).min(most),
            End::After(_) => most,
        }
    }
}

/// What a pass came to.
#[derive(Debug)]
pub struct Pass {
    /// What was counted.
    pub results: Results,
    /// From its begin to the end of the last answer.
    pub took: Duration,
    /// Streams that a signal cut off; they are counted nowhere else.
    pub cut_off: u64,
    /// Whether a signal ended it.
    pub interrupted: bool,
}

impl Pass {
    /// Requests that were sent.
    pub fn sent(&self) -> u64 {
        self.results.count() + self.cut_off
    }

    /// Whether every answer came.
    pub fn is_good(&self) -> bool {
        !self.interrupted && self.results.complete == self.sent()
    }
}

/// Sends all of `plan` that `load` says and shows `each` outcome. A signal ends it early.
pub async fn pass(
    client: &Client,
    plan: &Arc<Plan>,
    load: Load,
    progress: &mut Progress,
    signals: &mut Signals,
    mut each: impl FnMut(&Outcome),
) -> Pass {
    let begun = Instant::now();
    let schedule = Arc::new(Schedule::new(load.arrivals, begun));
    let live = Arc::new(Live::default());
    let (done, mut outcomes) = mpsc::channel(OUTCOMES);
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

    let mut results = Results::default();
    let mut count = |outcome: Outcome, results: &mut Results| {
        each(&outcome);
        results.add(&outcome);
    };
    let mut tick = interval(TICK);
    let interrupted = loop {
        tokio::select! {
            outcome = outcomes.recv() => match outcome {
                Some(outcome) => count(outcome, &mut results),
                None => break false,
            },
            _ = tick.tick() => progress.show(&results, &live, begun.elapsed()),
            _ = signals.next() => break true,
        }
    };
    let took = begun.elapsed();
    // Streams that were cut off are gone before what they left is counted.
    streams.shutdown().await;
    while let Ok(outcome) = outcomes.try_recv() {
        count(outcome, &mut results);
    }
    let cut_off = live.sent.load(Ordering::Relaxed).saturating_sub(results.count());
    Pass { results, took, cut_off, interrupted }
}

/// Sends one request after the other.
struct Stream {
    client: Client,
    plan: Arc<Plan>,
    schedule: Arc<Schedule>,
    deadline: Option<Duration>,
    live: Arc<Live>,
    done: mpsc::Sender<Outcome>,
}

impl Stream {
    async fn run(self) {
        while let Some(ticket) = self.schedule.take() {
            let request = self.plan.request(ticket.index);
            let meant = match ticket.at {
                Some(at) => {
                    sleep_until(at).await;
                    at
                }
                None => Instant::now(),
            };
            let outcome =
                call(&self.client, request, ticket.index, meant, self.deadline, &self.live).await;
            if self.done.send(outcome).await.is_err() {
                return;
            }
        }
    }
}

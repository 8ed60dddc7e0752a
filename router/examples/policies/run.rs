//! One policy, from the first request of a trace to the last answer.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use stoker_proto::v1::generate_response::Event;
use stoker_router::{
    BalancingConfig,
    sim::{Answer, Balancer},
};
use tokio::{
    runtime::Builder,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use crate::{
    trace::Trace,
    worker::{self, Worker},
};

/// How often workers report, and how often queues are looked at.
const TICK: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) workers: usize,
    pub(crate) routers: usize,
    /// Tokens that a worker's cache holds.
    pub(crate) cache: usize,
    /// Whether it keeps any when a request is over.
    pub(crate) keeps: bool,
    /// Of what all workers could compute if no cache ever helped.
    pub(crate) load: f64,
}

/// What a policy has come to.
pub(crate) struct Outcome {
    /// In seconds, sorted.
    pub(crate) first_tokens: Vec<f64>,
    /// Tokens of prompts that caches had, of all.
    hit_rate: f64,
    /// Work of the busiest worker, in means.
    busiest: f64,
    /// Seconds of work that a worker has, on average over time.
    queue: f64,
    /// Seconds of work of the worker that has most: the 99th percentile over time.
    longest_queue: f64,
    /// Seconds from the first request to the last token.
    took: f64,
}

impl Outcome {
    pub(crate) const HEADER: &str = "\
| policy | cache hits | work, most / mean | queue, mean | longest, p99 | TTFT p50 | p95 | p99 | took |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |";

    pub(crate) fn row(&self, policy: &str) -> String {
        let [p50, p95, p99] = [50, 95, 99].map(|p| percentile(&self.first_tokens, p));
        format!(
            "| `{policy}` | {:.1} % | {:.2} | {:.2} s | {:.1} s | {p50:.2} s | {p95:.2} s | {p99:.2} s \
             | {:.0} s |",
            self.hit_rate * 100.0,
            self.busiest,
            self.queue,
            self.longest_queue,
            self.took
        )
    }
}

/// Of sorted values.
pub(crate) fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// Runs the trace through a policy. The clock is virtual, and everything is on one thread: the same again
/// comes to the same.
pub(crate) fn run(trace: &Trace, setting: Setting, config: &BalancingConfig) -> Outcome {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, simulate(trace, setting, config))
}

async fn simulate(trace: &Trace, setting: Setting, config: &BalancingConfig) -> Outcome {
    let workers: Arc<[_]> =
        (0..setting.workers).map(|_| Worker::new(setting.cache, setting.keeps)).collect();
    let infos = || (0..setting.workers).map(|i| worker::info(i, setting.cache)).collect();
    // What an answer needs of the trace, without the trace's lifetime.
    let requests: Arc<[_]> = trace.0.iter().cloned().collect();
    let answer: Answer = {
        let (workers, requests) = (Arc::clone(&workers), Arc::clone(&requests));
        Arc::new(move |number, request| {
            let place: usize = request.request_id.parse().unwrap();
            workers[number].take(&request, &requests[place])
        })
    };
    let routers: Arc<[_]> = (0..setting.routers)
        .map(|i| Balancer::new(config, 1 + ((i as u64) << 32), infos(), Arc::clone(&answer)))
        .collect();

    let running: Vec<_> = (0..setting.workers)
        .map(|i| {
            let workers = Arc::clone(&workers);
            tokio::task::spawn_local(async move { workers[i].run().await })
        })
        .collect();

    let begin = Instant::now();
    // Seconds of the trace in one of ours.
    let speed = trace.span() * setting.workers as f64 * setting.load / trace.work();
    let clients: Vec<_> = (0..requests.len())
        .map(|place| {
            let (routers, requests) = (Arc::clone(&routers), Arc::clone(&requests));
            let recorded = requests[place].timestamp / 1e3;
            let at = begin + Duration::from_secs_f64(recorded / speed);
            tokio::task::spawn_local(async move {
                sleep_until(at).await;
                let request = requests[place].request(place);
                let mut events = routers[place % routers.len()].generate(request).await.unwrap();
                let (mut first, mut cached) = (None, 0);
                while let Some(event) = events.next().await {
                    match event.unwrap().event {
                        Some(Event::Token(_)) => {
                            first.get_or_insert_with(|| at.elapsed().as_secs_f64());
                        }
                        Some(Event::Finished(finished)) => {
                            cached = finished.usage.unwrap().cached_prompt_tokens;
                        }
                        _ => {}
                    }
                }
                (first.unwrap(), cached)
            })
        })
        .collect();

    let mut first_tokens = Vec::new();
    let mut cached = 0;
    let answers = async {
        for client in clients {
            let (first, tokens) = client.await.unwrap();
            first_tokens.push(first);
            cached += u64::from(tokens);
        }
    };
    let mut queues = Queues::default();
    tokio::select! {
        () = answers => {}
        () = watch(&workers, &routers, &mut queues) => {}
    }
    let took = begin.elapsed().as_secs_f64();
    running.iter().for_each(|worker| worker.abort());
    for router in routers.iter() {
        assert!((0..setting.workers).all(|worker| router.outstanding(worker) == 0));
    }

    first_tokens.sort_by(f64::total_cmp);
    let prompts: usize = requests.iter().map(|r| r.input_length).sum();
    queues.longest.sort_by(f64::total_cmp);
    Outcome {
        first_tokens,
        hit_rate: cached as f64 / prompts as f64,
        busiest: most_of_mean(workers.iter().map(|worker| worker.busy())),
        queue: queues.sum / (queues.longest.len() * setting.workers) as f64,
        longest_queue: percentile(&queues.longest, 99),
        took,
    }
}

/// Seconds of work that workers had, looked at again and again.
#[derive(Default)]
struct Queues {
    sum: f64,
    longest: Vec<f64>,
}

/// Brings reports to routers, and looks at queues; never ends.
async fn watch(workers: &[Arc<Worker>], routers: &[Balancer], queues: &mut Queues) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for (number, worker) in workers.iter().enumerate() {
            let load = worker.load();
            routers.iter().for_each(|router| router.report(number, load));
        }
        let now = || workers.iter().map(|worker| worker.backlog());
        queues.sum += now().sum::<f64>();
        queues.longest.push(now().fold(0.0, f64::max));
    }
}

fn most_of_mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    let (most, sum) = values.fold((0.0, 0.0), |(most, sum), v| (f64::max(most, v), sum + v));
    most / (sum / count)
}

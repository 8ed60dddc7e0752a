//! Simulation of one policy, from the first request of a trace to the last response.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use stoker_proto::v1::generate_response::Event;
use stoker_router::{
    BalancingConfig,
    sim::{Balancer, RespondFn},
};
use tokio::{
    runtime::Builder,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    trace::Trace,
    worker::{self, Worker},
};

/// Interval of load reports and of queue samples.
const TICK: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy)]
pub(crate) struct SimulationConfig {
    pub(crate) workers: usize,
    pub(crate) routers: usize,
    /// Size of a worker's KV cache, in tokens.
    pub(crate) cache: usize,
    /// Whether workers cache prefixes.
    pub(crate) caching: bool,
    /// Request rate, as a fraction of what all workers could compute without cache hits.
    pub(crate) load: f64,
}

/// Result of a policy.
pub(crate) struct PolicyResult {
    /// Times to first token, in seconds, sorted.
    pub(crate) first_tokens: Vec<f64>,
    /// Cached fraction of all prompt tokens.
    hit_rate: f64,
    /// Work of the busiest worker, relative to the mean.
    busiest: f64,
    /// Mean backlog of a worker over time, in seconds of work.
    queue: f64,
    /// Backlog of the busiest worker, in seconds of work: the 99th percentile over time.
    longest_queue: f64,
    /// Seconds from the first request to the last token.
    duration: f64,
}

impl PolicyResult {
    pub(crate) const HEADER: &str = "\
| policy | cache hits | work, max / mean | queue, mean | longest queue, p99 | TTFT p50 | p95 | p99 | duration |
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
            self.duration
        )
    }
}

/// Returns a percentile of sorted values.
pub(crate) fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// Runs the trace through a policy. Virtual time and a single thread make the result reproducible.
pub(crate) fn run(
    trace: &Trace,
    simulation: SimulationConfig,
    config: &BalancingConfig,
) -> PolicyResult {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, simulate(trace, simulation, config))
}

async fn simulate(
    trace: &Trace,
    simulation: SimulationConfig,
    config: &BalancingConfig,
) -> PolicyResult {
    let workers: Arc<[_]> = (0..simulation.workers)
        .map(|_| Worker::new(simulation.cache, simulation.caching))
        .collect();
    let infos = || (0..simulation.workers).map(|i| worker::info(i, simulation.cache)).collect();
    // A copy of the trace without its lifetime, for the response function.
    let requests: Arc<[_]> = trace.0.iter().cloned().collect();
    let respond: RespondFn = {
        let (workers, requests) = (Arc::clone(&workers), Arc::clone(&requests));
        Arc::new(move |number, request| {
            let index: usize = request.request_id.parse().unwrap();
            workers[number].take(&request, &requests[index])
        })
    };
    let routers: Arc<[_]> = (0..simulation.routers)
        .map(|i| Balancer::new(config, 1 + ((i as u64) << 32), infos(), Arc::clone(&respond)))
        .collect();

    let running: Vec<_> = (0..simulation.workers)
        .map(|i| {
            let workers = Arc::clone(&workers);
            tokio::task::spawn_local(async move { workers[i].run().await })
        })
        .collect();

    let start = Instant::now();
    // Seconds of the trace per second of virtual time.
    let speed = trace.span() * simulation.workers as f64 * simulation.load / trace.work();
    let clients: Vec<_> = (0..requests.len())
        .map(|index| {
            let (routers, requests) = (Arc::clone(&routers), Arc::clone(&requests));
            let recorded = requests[index].timestamp / 1e3;
            let at = start + Duration::from_secs_f64(recorded / speed);
            tokio::task::spawn_local(async move {
                sleep_until(at).await;
                let request = requests[index].request(index);
                let mut events = routers[index % routers.len()].generate(request).await.unwrap();
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
    let responses = async {
        for client in clients {
            let (first, tokens) = client.await.unwrap();
            first_tokens.push(first);
            cached += u64::from(tokens);
        }
    };
    let mut queues = Queues::default();
    tokio::select! {
        () = responses => {}
        () = watch(&workers, &routers, &mut queues) => {}
    }
    let duration = start.elapsed().as_secs_f64();
    running.iter().for_each(|worker| worker.abort());
    for router in routers.iter() {
        assert!((0..simulation.workers).all(|worker| router.outstanding(worker) == 0));
    }

    first_tokens.sort_by(f64::total_cmp);
    let prompts: usize = requests.iter().map(|r| r.input_length).sum();
    queues.longest.sort_by(f64::total_cmp);
    PolicyResult {
        first_tokens,
        hit_rate: cached as f64 / prompts as f64,
        busiest: max_over_mean(workers.iter().map(|worker| worker.busy())),
        queue: queues.sum / (queues.longest.len() * simulation.workers) as f64,
        longest_queue: percentile(&queues.longest, 99),
        duration,
    }
}

/// Samples of the workers' backlogs, in seconds of work.
#[derive(Default)]
struct Queues {
    sum: f64,
    longest: Vec<f64>,
}

/// Delivers load reports to the routers and samples the backlogs, without end.
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

fn max_over_mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    let (max, sum) = values.fold((0.0, 0.0), |(max, sum), v| (f64::max(max, v), sum + v));
    max / (sum / count)
}

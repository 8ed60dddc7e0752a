//! Which worker gets a call: by the work that it has, less what it would save.
//!
//! `candidates` says who may be chosen, `prompt` and `index` who has seen the beginning of a prompt, `stats`
//! how much work a request is, and `cost` puts them together.

mod candidates;
mod capacity;
mod cost;
mod index;
mod model_stats;
mod prompt;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use rand::{SeedableRng, rngs::SmallRng};
use stoker_proto::v1::GenerateRequest;
use tokio::time::Instant;

use crate::{
    call::Call,
    config::BalancingConfig,
    pool::{
        model::Model,
        worker::{InstanceId, Worker},
    },
};
use cost::Candidate;
use index::{Hit, Holder, PrefixIndex};
use prompt::Link;

pub(crate) use candidates::Criteria;
pub(crate) use capacity::RequiredCapacity;
pub(crate) use model_stats::{ModelStats, RequestCost, resume};
pub(crate) use prompt::text_bytes;

/// Tokens between two stamps of what a worker was sent.
const STAMP_TOKENS: u64 = 64;
/// A worker that was never found to keep a prefix is believed a little, so that it can prove otherwise, but not
/// enough to wait for it.
const LEAST_BELIEF: f32 = 1.0 / 64.0;

/// What no router knows goes where all of them would look for it, unless others have clearly less to do.
const LEAST_AGREEMENT: f32 = 1.0 / 8.0;

/// How workers are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Policy {
    /// The least work after what the worker's prefix cache would save
    #[default]
    PrefixAffinity,
    /// The least work, caches aside
    LeastTokens,
    /// One after the other
    RoundRobin,
    /// Anyone
    Random,
}

/// Chooses workers, and remembers what it takes to choose well.
#[derive(Debug)]
pub(crate) struct Chooser {
    policy: Policy,
    factor: f64,
    index: Mutex<PrefixIndex>,
    /// By the names of models that workers serve.
    models: RwLock<HashMap<String, Arc<ModelStats>>>,
    /// Seeds the draws, each with a number of its own.
    draws: AtomicU64,
}

/// The worker for a call, and what the call will take there.
#[derive(Debug)]
pub(crate) struct Selection {
    pub(crate) worker: Arc<Worker>,
    pub(crate) cost: RequestCost,
    /// Tokens of the prompt that the worker may have in its cache.
    pub(crate) expected: u64,
    /// What of these it is believed to have.
    pub(crate) saved: u64,
    pub(crate) source: Source,
    pub(crate) stats: Arc<ModelStats>,
}

/// Why a worker should have a prefix.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Source {
    /// This router sent it there.
    #[default]
    Local,
    /// Another router would have.
    Remote,
}

/// A worker for a question that costs it nothing; rather one that was not `tried`.
pub(crate) fn any_worker<'a>(model: &'a Model, tried: &[InstanceId]) -> Option<&'a Arc<Worker>> {
    let wanted = Criteria { tried, ..Criteria::default() };
    candidates::first(model.live(), rand::random_range(..usize::MAX), &wanted)
}

impl Chooser {
    /// Draws by chance; the same draws for the same seed.
    pub(crate) fn new(config: &BalancingConfig, seed: u64) -> Self {
        let bytes = usize::try_from(config.affinity_memory.as_u64()).unwrap_or(usize::MAX);
        Self {
            policy: config.policy,
            factor: config.affinity_factor,
            index: Mutex::new(PrefixIndex::new(bytes, Instant::now())),
            models: RwLock::default(),
            draws: AtomicU64::new(seed),
        }
    }

    /// The worker for `request`; `None` if nobody fits.
    pub(crate) fn choose(
        &self,
        model: &Model,
        request: &GenerateRequest,
        wanted: &Criteria<'_>,
    ) -> Option<Selection> {
        let stats = self.stats(model.name());
        let cost = stats.estimate(request);
        let chosen = match self.policy {
            Policy::RoundRobin => {
                Chosen::of(candidates::first(model.live(), stats.turn(), wanted)?)
            }
            Policy::Random => Chosen::of(*self.draw(model, wanted).first()?),
            Policy::LeastTokens => {
                let candidates = self.candidates(model, wanted, &stats);
                Chosen::of(cost::least(&candidates, cost.prompt)?.worker)
            }
            Policy::PrefixAffinity => {
                self.by_prefix(model, request, wanted, &stats, cost.prompt)?
            }
        };
        Some(Selection {
            cost: cost.within(chosen.worker.info.context_length),
            worker: Arc::clone(chosen.worker),
            expected: chosen.expected,
            saved: chosen.saved,
            source: chosen.source,
            stats,
        })
    }

    /// What `call` needs of a worker of `model`.
    pub(crate) fn required_capacity(&self, model: &Model, call: &Call) -> RequiredCapacity {
        RequiredCapacity::of(call, self.stats(model.name()).estimate(&call.request).prompt, model)
    }

    /// What is known of the model of that name.
    fn stats(&self, model: &str) -> Arc<ModelStats> {
        let known = self.models.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(stats) = known.get(model) {
            return Arc::clone(stats);
        }
        drop(known);
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(models.entry(model.to_owned()).or_default())
    }

    fn draw<'a>(&self, model: &'a Model, wanted: &Criteria<'_>) -> Vec<&'a Arc<Worker>> {
        let seed = self.draws.fetch_add(1, Ordering::Relaxed);
        candidates::draw(model.live(), wanted, &mut SmallRng::seed_from_u64(seed))
    }

    fn candidates<'a>(
        &self,
        model: &'a Model,
        wanted: &Criteria<'_>,
        stats: &ModelStats,
    ) -> Vec<Candidate<'a>> {
        let usual = stats.usual_answer();
        let drawn = self.draw(model, wanted).into_iter();
        drawn.map(|worker| Candidate::new(worker, usual)).collect()
    }

    /// The best of a few drawn by chance and of those who should have the beginning of the prompt.
    fn by_prefix<'a>(
        &self,
        model: &'a Model,
        request: &GenerateRequest,
        wanted: &Criteria<'_>,
        stats: &ModelStats,
        prompt: u64,
    ) -> Option<Chosen<'a>> {
        let chain = prompt::chain(request);
        // Who does not read the cache may go anywhere; what is computed for him is there for others.
        let wanted_links = if prompt::reads_cache(request) { &chain[..] } else { &[] };
        let mut candidates = self.candidates(model, wanted, stats);
        let drawn = candidates.len();
        let any = candidates.first()?.worker;
        let usual = stats.usual_answer();
        let mut holders: Vec<(Prefix<'_>, u64)> = Vec::new();
        for prefix in self.prefixes(model, wanted_links) {
            let known = holders.iter().any(|(other, _)| Arc::ptr_eq(other.worker, prefix.worker));
            if known || !candidates::as_good(prefix.worker, any, wanted) {
                continue;
            }
            let tokens = stats.tokens(request, prefix.bytes).min(prompt);
            let mut candidate = Candidate::new(prefix.worker, usual);
            candidate.saved = (tokens as f32 * prefix.preference(stats)) as u64;
            holders.push((prefix, tokens));
            match candidates.iter_mut().find(|other| Arc::ptr_eq(other.worker, candidate.worker)) {
                Some(other) => *other = candidate,
                None => candidates.push(candidate),
            }
        }
        cost::yield_at_hot_spots(&mut candidates, drawn, self.factor);
        let worker = cost::least(&candidates, prompt)?.worker;
        self.record(&chain, worker);
        let chosen = holders.iter().find(|(holder, _)| Arc::ptr_eq(holder.worker, worker));
        Some(chosen.map_or(Chosen::of(worker), |(holder, tokens)| Chosen {
            worker,
            expected: *tokens,
            saved: (*tokens as f32 * holder.belief(stats)) as u64,
            source: holder.source,
        }))
    }

    /// Who may have the beginning of a prompt: those who were sent it, and those whom another router would have
    /// sent it to.
    fn prefixes<'a>(&self, model: &'a Model, chain: &[Link]) -> Vec<Prefix<'a>> {
        let here = self.hits(chain).into_iter().filter_map(|Hit { holder, bytes }| {
            let worker = model.by_serial(holder.worker)?;
            let kept = !evicted(worker, holder.stamp);
            kept.then_some(Prefix { worker, bytes, source: Source::Local })
        });
        let elsewhere = prompt::landmarks(chain).filter_map(|link| {
            let worker = model.rendezvous_owner(link.hash)?;
            Some(Prefix { worker, bytes: link.end, source: Source::Remote })
        });
        here.chain(elsewhere).collect()
    }

    fn hits(&self, chain: &[Link]) -> Vec<Hit> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner).find(chain)
    }

    /// Remembers who gets the prompt. Before it is sent, so that those who come with the same beginning at
    /// once go where it will be.
    fn record(&self, chain: &[Link], worker: &Worker) {
        if !chain.is_empty() {
            let holder = Holder { worker: worker.serial, stamp: stamp(worker) };
            let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
            index.record(chain, holder, Instant::now());
        }
    }
}

/// A worker that may have the beginning of a prompt.
struct Prefix<'a> {
    worker: &'a Arc<Worker>,
    /// How much of it.
    bytes: u64,
    source: Source,
}

impl Prefix<'_> {
    /// How likely it is there, from 0 to 1.
    fn belief(&self, stats: &ModelStats) -> f32 {
        let kept = self.worker.prefix_hit_rate.get().unwrap_or(1.0);
        match self.source {
            Source::Local => kept,
            Source::Remote => kept * stats.remote_hit_rate.get().unwrap_or(0.0),
        }
    }

    /// What it counts for in the choice.
    fn preference(&self, stats: &ModelStats) -> f32 {
        let kept = self.worker.prefix_hit_rate.get().unwrap_or(1.0);
        let least = match self.source {
            Source::Local => LEAST_BELIEF,
            Source::Remote => (kept * LEAST_AGREEMENT).max(LEAST_BELIEF),
        };
        self.belief(stats).max(least)
    }
}

/// A worker, before the call is known to it.
struct Chosen<'a> {
    worker: &'a Arc<Worker>,
    expected: u64,
    saved: u64,
    source: Source,
}

impl<'a> Chosen<'a> {
    /// Without a look at prefixes.
    fn of(worker: &'a Arc<Worker>) -> Self {
        Self { worker, expected: 0, saved: 0, source: Source::default() }
    }
}

/// What a worker has been sent. It may wrap.
fn stamp(worker: &Worker) -> u32 {
    (worker.sent() / STAMP_TOKENS) as u32
}

/// Whether a worker has been sent more than its cache holds since `then`, and so has lost what it had.
fn evicted(worker: &Worker, then: u32) -> bool {
    let since = u64::from(stamp(worker).wrapping_sub(then)) * STAMP_TOKENS;
    worker.kv_tokens().is_some_and(|cache| since > cache)
}

#[cfg(test)]
mod tests;

//! Worker selection: the worker with the least outstanding work after its prefix cache savings.
//!
//! `candidates` filters and ranks the workers, `prompt` and `index` find those that were sent a
//! prefix of the prompt, `model_stats` estimates the work of a request, `capacity` checks whether a
//! worker can hold it, and `cost` combines these into one number.

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
    config::{BalancingConfig, Policy},
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

/// Unit of a worker's stamp: tokens sent to it.
const STAMP_TOKENS: u64 = 64;
/// Minimum weight of a prefix. A worker whose cache never had a prefix still gets a few requests,
/// so that its hit rate can recover, but is not worth a queueing delay.
const MIN_HIT_PROBABILITY: f32 = 1.0 / 64.0;

/// Minimum hit rate assumed for the rendezvous owner of a prefix that this router has not sent.
/// Routers thereby send new prompts to the same worker, unless another worker has clearly less
/// work.
const MIN_REMOTE_HIT_RATE: f32 = 1.0 / 8.0;

/// Selects workers, and holds the statistics and the prefix index that this needs.
#[derive(Debug)]
pub(crate) struct Chooser {
    policy: Policy,
    factor: f64,
    index: Mutex<PrefixIndex>,
    /// Statistics by model name.
    models: RwLock<HashMap<String, Arc<ModelStats>>>,
    /// Seed of the next random draw.
    draws: AtomicU64,
}

/// The worker selected for a call, and the estimated cost of the call.
#[derive(Debug)]
pub(crate) struct Selection {
    pub(crate) worker: Arc<Worker>,
    pub(crate) cost: RequestCost,
    /// Prompt tokens that the worker may have in its prefix cache.
    pub(crate) expected: u64,
    /// `expected` times the probability of a cache hit.
    pub(crate) saved: u64,
    pub(crate) source: Source,
    pub(crate) stats: Arc<ModelStats>,
    /// Number of workers that were compared.
    pub(crate) candidates: usize,
}

/// Reason to expect a prefix in a worker's cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Source {
    /// This router sent the prefix to the worker.
    #[default]
    Local,
    /// Another router would have sent it there: the worker is its rendezvous owner.
    Remote,
}

/// Returns a worker for a call that needs no engine work, preferably one that was not `tried`.
pub(crate) fn any_worker<'a>(model: &'a Model, tried: &[InstanceId]) -> Option<&'a Arc<Worker>> {
    let criteria = Criteria { tried, ..Criteria::default() };
    candidates::first(model.live(), rand::random_range(..usize::MAX), &criteria)
}

impl Chooser {
    /// Random draws are reproducible for a `seed`.
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

    /// Selects a worker for `request`; `None` if no worker meets `criteria`.
    pub(crate) fn choose(
        &self,
        model: &Model,
        request: &GenerateRequest,
        criteria: &Criteria<'_>,
    ) -> Option<Selection> {
        let stats = self.stats(model.name());
        let cost = stats.estimate(request);
        let pick = match self.policy {
            Policy::RoundRobin => {
                Pick::of(candidates::first(model.live(), stats.next_round_robin(), criteria)?)
            }
            Policy::Random => Pick::of(*self.draw(model, criteria).first()?),
            Policy::LeastTokens => {
                let candidates = self.candidates(model, criteria, &stats);
                let worker = cost::cheapest(&candidates, cost.prompt)?.worker;
                Pick { candidates: candidates.len(), ..Pick::of(worker) }
            }
            Policy::PrefixAffinity => {
                self.pick_by_prefix(model, request, criteria, &stats, cost.prompt)?
            }
        };
        Some(Selection {
            cost: cost.within(pick.worker.info.context_length),
            worker: Arc::clone(pick.worker),
            expected: pick.expected,
            saved: pick.saved,
            source: pick.source,
            stats,
            candidates: pick.candidates,
        })
    }

    /// Returns the policy.
    pub(crate) fn policy(&self) -> Policy {
        self.policy
    }

    /// Returns the capacity that `call` needs at a worker of `model`.
    pub(crate) fn required_capacity(&self, model: &Model, call: &Call) -> RequiredCapacity {
        RequiredCapacity::of(call, self.stats(model.name()).estimate(&call.request).prompt, model)
    }

    /// Returns the statistics of `model`, creating them if needed.
    fn stats(&self, model: &str) -> Arc<ModelStats> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(stats) = models.get(model) {
            return Arc::clone(stats);
        }
        drop(models);
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(models.entry(model.to_owned()).or_default())
    }

    fn draw<'a>(&self, model: &'a Model, criteria: &Criteria<'_>) -> Vec<&'a Arc<Worker>> {
        let seed = self.draws.fetch_add(1, Ordering::Relaxed);
        candidates::draw(model.live(), criteria, &mut SmallRng::seed_from_u64(seed))
    }

    fn candidates<'a>(
        &self,
        model: &'a Model,
        criteria: &Criteria<'_>,
        stats: &ModelStats,
    ) -> Vec<Candidate<'a>> {
        let completion_tokens = stats.typical_completion_tokens();
        let drawn = self.draw(model, criteria).into_iter();
        drawn.map(|worker| Candidate::new(worker, completion_tokens)).collect()
    }

    /// Picks the cheapest of a random sample and of the workers expected to have a prefix of the
    /// prompt.
    fn pick_by_prefix<'a>(
        &self,
        model: &'a Model,
        request: &GenerateRequest,
        criteria: &Criteria<'_>,
        stats: &ModelStats,
        prompt: u64,
    ) -> Option<Pick<'a>> {
        let chain = prompt::chain(request);
        // A request that bypasses the cache may run on any worker. Its prompt is recorded for
        // others.
        let lookup = if prompt::reads_cache(request) { &chain[..] } else { &[] };
        let mut candidates = self.candidates(model, criteria, stats);
        let drawn = candidates.len();
        let sampled = candidates.first()?.worker;
        let completion_tokens = stats.typical_completion_tokens();
        let mut holders: Vec<(Prefix<'_>, u64)> = Vec::new();
        for prefix in self.prefixes(model, lookup) {
            let known = holders.iter().any(|(other, _)| Arc::ptr_eq(other.worker, prefix.worker));
            if known || !candidates::ranks_at_least(prefix.worker, sampled, criteria) {
                continue;
            }
            let tokens = stats.tokens(request, prefix.bytes).min(prompt);
            let mut candidate = Candidate::new(prefix.worker, completion_tokens);
            candidate.saved = (tokens as f32 * prefix.selection_weight(stats)) as u64;
            holders.push((prefix, tokens));
            match candidates.iter_mut().find(|other| Arc::ptr_eq(other.worker, candidate.worker)) {
                Some(other) => *other = candidate,
                None => candidates.push(candidate),
            }
        }
        cost::discard_savings_at_hot_spots(&mut candidates, drawn, self.factor);
        let worker = cost::cheapest(&candidates, prompt)?.worker;
        self.record(&chain, worker);
        let matched = holders.iter().find(|(holder, _)| Arc::ptr_eq(holder.worker, worker));
        let pick = Pick { candidates: candidates.len(), ..Pick::of(worker) };
        Some(match matched {
            None => pick,
            Some((holder, tokens)) => Pick {
                expected: *tokens,
                saved: (*tokens as f32 * holder.hit_probability(stats)) as u64,
                source: holder.source,
                ..pick
            },
        })
    }

    /// Returns the workers that may have a prefix of the prompt: those that this router sent it to,
    /// and the rendezvous owners, to which other routers would have sent it.
    fn prefixes<'a>(&self, model: &'a Model, chain: &[Link]) -> Vec<Prefix<'a>> {
        let local = self.hits(chain).into_iter().filter_map(|Hit { holder, bytes }| {
            let worker = model.by_serial(holder.worker)?;
            let cached = !evicted(worker, holder.stamp);
            cached.then_some(Prefix { worker, bytes, source: Source::Local })
        });
        let remote = prompt::landmarks(chain).filter_map(|link| {
            let worker = model.rendezvous_owner(link.hash)?;
            Some(Prefix { worker, bytes: link.end, source: Source::Remote })
        });
        local.chain(remote).collect()
    }

    fn hits(&self, chain: &[Link]) -> Vec<Hit> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner).find(chain)
    }

    /// Records that `worker` gets the prompt. This happens before the prompt is sent, so that
    /// concurrent requests with the same prefix go to the same worker.
    fn record(&self, chain: &[Link], worker: &Worker) {
        if !chain.is_empty() {
            let holder = Holder { worker: worker.serial, stamp: stamp(worker) };
            let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
            index.record(chain, holder, Instant::now());
        }
    }
}

/// A worker that may have a prefix of a prompt in its cache.
struct Prefix<'a> {
    worker: &'a Arc<Worker>,
    /// Length of the prefix.
    bytes: u64,
    source: Source,
}

impl Prefix<'_> {
    /// Returns the estimated probability of a cache hit, from 0 to 1.
    fn hit_probability(&self, stats: &ModelStats) -> f32 {
        let hit_rate = self.worker.prefix_hit_rate.get().unwrap_or(1.0);
        match self.source {
            Source::Local => hit_rate,
            Source::Remote => hit_rate * stats.remote_hit_rate.get().unwrap_or(0.0),
        }
    }

    /// Returns the hit probability that selection uses, which has a lower bound.
    fn selection_weight(&self, stats: &ModelStats) -> f32 {
        let hit_rate = self.worker.prefix_hit_rate.get().unwrap_or(1.0);
        let minimum = match self.source {
            Source::Local => MIN_HIT_PROBABILITY,
            Source::Remote => (hit_rate * MIN_REMOTE_HIT_RATE).max(MIN_HIT_PROBABILITY),
        };
        self.hit_probability(stats).max(minimum)
    }
}

/// The worker that a policy picked, before the call is reserved there.
struct Pick<'a> {
    worker: &'a Arc<Worker>,
    expected: u64,
    saved: u64,
    source: Source,
    candidates: usize,
}

impl<'a> Pick<'a> {
    /// A pick of the only candidate, without an expected prefix.
    fn of(worker: &'a Arc<Worker>) -> Self {
        Self { worker, expected: 0, saved: 0, source: Source::default(), candidates: 1 }
    }
}

/// Returns the tokens sent to `worker`, in units of [`STAMP_TOKENS`]. The value may wrap.
fn stamp(worker: &Worker) -> u32 {
    (worker.sent() / STAMP_TOKENS) as u32
}

/// Whether the worker was sent more tokens since `then` than its cache holds, which evicts the
/// prefix.
fn evicted(worker: &Worker, then: u32) -> bool {
    let since = u64::from(stamp(worker).wrapping_sub(then)) * STAMP_TOKENS;
    worker.kv_tokens().is_some_and(|cache| since > cache)
}

#[cfg(test)]
mod tests;

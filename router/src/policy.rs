//! Which worker gets a call: by the work that it has, less what it would save.
//!
//! `candidates` says who may be chosen, `prompt` and `index` who has seen the beginning of a prompt, `learned`
//! how much work a request is, and `cost` puts them together.

mod candidates;
mod cost;
mod index;
mod learned;
mod prompt;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use foldhash::quality::RandomState;
use rand::{SeedableRng, rngs::SmallRng};
use stoker_proto::v1::GenerateRequest;
use tokio::time::Instant;

use crate::{
    config::BalancingConfig,
    pool::{model::Model, worker::Worker},
};
use cost::Candidate;
use index::{Hit, Holder, PrefixIndex};
use prompt::Link;

pub(crate) use candidates::Wanted;
pub(crate) use learned::{Demand, Learned, resume};
pub(crate) use prompt::text_bytes;

/// Tokens between two stamps of what a worker was sent.
const STAMP_TOKENS: u64 = 64;
/// A worker that was never found to keep a prefix is believed a little, so that it can prove otherwise, but not
/// enough to wait for it.
const LEAST_BELIEF: f32 = 1.0 / 64.0;

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
    hashes: RandomState,
    index: Mutex<PrefixIndex>,
    /// By the names of models that workers serve.
    models: RwLock<HashMap<String, Arc<Learned>>>,
    /// Seeds the draws, each with a number of its own.
    draws: AtomicU64,
}

/// The worker for a call, and what the call will take there.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) worker: Arc<Worker>,
    pub(crate) demand: Demand,
    /// Tokens of the prompt that the worker was sent before and should have kept.
    pub(crate) expected: u64,
    /// The part of these that is believed.
    pub(crate) saved: u64,
    pub(crate) learned: Arc<Learned>,
}

/// A worker for a question that costs it nothing.
pub(crate) fn anyone(model: &Model) -> Option<&Arc<Worker>> {
    candidates::first(model.live(), rand::random_range(..usize::MAX), &Wanted::default())
}

impl Chooser {
    /// Draws by chance; the same draws for the same seed.
    pub(crate) fn new(config: &BalancingConfig, seed: u64) -> Self {
        let bytes = usize::try_from(config.affinity_memory.as_u64()).unwrap_or(usize::MAX);
        Self {
            policy: config.policy,
            factor: config.affinity_factor,
            hashes: RandomState::default(),
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
        wanted: &Wanted<'_>,
    ) -> Option<Choice> {
        let learned = self.learned(model.name());
        let demand = learned.demand(request);
        let chosen = match self.policy {
            Policy::RoundRobin => {
                Chosen::of(candidates::first(model.live(), learned.turn(), wanted)?)
            }
            Policy::Random => Chosen::of(*self.draw(model, wanted).first()?),
            Policy::LeastTokens => {
                let candidates = self.candidates(model, wanted, &learned);
                Chosen::of(cost::least(&candidates, demand.prompt)?.worker)
            }
            Policy::PrefixAffinity => {
                self.by_prefix(model, request, wanted, &learned, demand.prompt)?
            }
        };
        Some(Choice {
            demand: demand.within(chosen.worker.info.context_length),
            worker: Arc::clone(chosen.worker),
            expected: chosen.expected,
            saved: chosen.saved,
            learned,
        })
    }

    /// What is known of the model of that name.
    fn learned(&self, model: &str) -> Arc<Learned> {
        let known = self.models.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(learned) = known.get(model) {
            return Arc::clone(learned);
        }
        drop(known);
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(models.entry(model.to_owned()).or_default())
    }

    fn draw<'a>(&self, model: &'a Model, wanted: &Wanted<'_>) -> Vec<&'a Arc<Worker>> {
        let seed = self.draws.fetch_add(1, Ordering::Relaxed);
        candidates::draw(model.live(), wanted, &mut SmallRng::seed_from_u64(seed))
    }

    fn candidates<'a>(
        &self,
        model: &'a Model,
        wanted: &Wanted<'_>,
        learned: &Learned,
    ) -> Vec<Candidate<'a>> {
        let usual = learned.usual_answer();
        let drawn = self.draw(model, wanted).into_iter();
        drawn.map(|worker| Candidate::new(worker, usual)).collect()
    }

    /// The best of a few drawn by chance and of those who should have the beginning of the prompt.
    fn by_prefix<'a>(
        &self,
        model: &'a Model,
        request: &GenerateRequest,
        wanted: &Wanted<'_>,
        learned: &Learned,
        prompt: u64,
    ) -> Option<Chosen<'a>> {
        let chain = match request.bypass_prefix_cache {
            true => Vec::new(),
            false => prompt::chain(request, &self.hashes),
        };
        let mut candidates = self.candidates(model, wanted, learned);
        let drawn = candidates.len();
        let any = candidates.first()?.worker;
        let mut expected = Vec::new();
        for Hit { holder, bytes } in self.hits(&chain) {
            let Some(worker) = model.by_serial(holder.worker) else { continue };
            if evicted(worker, holder.stamp) || !candidates::as_good(worker, any, wanted) {
                continue;
            }
            let tokens = learned.tokens(request, bytes).min(prompt);
            let belief = worker.kept.get().unwrap_or(1.0).max(LEAST_BELIEF);
            let mut candidate = Candidate::new(worker, learned.usual_answer());
            candidate.saved = (tokens as f32 * belief) as u64;
            expected.push((holder.worker, tokens));
            match candidates.iter_mut().find(|other| Arc::ptr_eq(other.worker, worker)) {
                Some(other) => *other = candidate,
                None => candidates.push(candidate),
            }
        }
        cost::yield_at_hot_spots(&mut candidates, drawn, self.factor);
        let Candidate { worker, saved, .. } = *cost::least(&candidates, prompt)?;
        let of_worker = expected.iter().find(|(serial, _)| *serial == worker.serial);
        let expected = of_worker.map_or(0, |(_, tokens)| *tokens);
        self.record(&chain, worker);
        Some(Chosen { worker, expected, saved })
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

/// A worker, before the call is known to it.
struct Chosen<'a> {
    worker: &'a Arc<Worker>,
    expected: u64,
    saved: u64,
}

impl<'a> Chosen<'a> {
    /// Without a look at prefixes.
    fn of(worker: &'a Arc<Worker>) -> Self {
        Self { worker, expected: 0, saved: 0 }
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

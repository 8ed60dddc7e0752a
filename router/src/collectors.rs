//! Metrics that are computed at every scrape.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, atomic::AtomicU64},
};

use prometheus_client::{
    collector::Collector,
    encoding::DescriptorEncoder,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use stoker_proto::v1::Load;
use stoker_shared::{
    memory::MemoryBudget,
    names::{label, router as names},
};
use tokio::sync::watch;

use crate::{
    metrics::{ModelLabel, StaticLabel},
    pool::{Fleet, Pool, State},
};

/// Registers the metrics of the workers in `pool`, and of the use of `memory`.
pub(crate) fn register(registry: &mut Registry, pool: &Pool, memory: &MemoryBudget) {
    registry.register_collector(Box::new(WorkerCollector(pool.watch())));
    registry.register_collector(Box::new(ModelCollector(pool.watch())));
    registry.register_collector(Box::new(MemoryCollector(memory.clone())));
}

/// Counts the workers by state at every scrape.
#[derive(Debug)]
struct WorkerCollector(watch::Receiver<Arc<Fleet>>);

impl Collector for WorkerCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let fleet = Arc::clone(&self.0.borrow());
        let workers = Family::<StaticLabel, Gauge>::default();
        for state in ["live", "ejected", "stalled", "draining", "gone"] {
            workers.get_or_create_owned(&[(label::STATE, state)]);
        }
        for state in fleet.states() {
            let state = match state {
                // Counted under its other address.
                State::Duplicate(_) => continue,
                State::Live(worker) if worker.liveness.is_stalled() => "stalled",
                State::Live(worker) if worker.health.is_suspected() => "ejected",
                State::Live(_) => "live",
                State::Draining(_) => "draining",
                State::Gone { .. } => "gone",
            };
            workers.get_or_create(&[(label::STATE, state)]).inc();
        }
        names::WORKERS.encode(&mut encoder, &workers)?;
        let outstanding = Family::<[(&'static str, String); 1], Gauge>::default();
        for state in fleet.states() {
            let (State::Live(worker) | State::Draining(worker)) = state else { continue };
            let tokens = worker.outstanding.tokens();
            let label = [(label::WORKER, worker.id.as_str().to_owned())];
            outstanding.get_or_create(&label).inc_by(i64::try_from(tokens).unwrap_or(i64::MAX));
        }
        names::OUTSTANDING.encode(&mut encoder, &outstanding)
    }
}

/// Sums the load of the live workers of each model at every scrape.
#[derive(Debug)]
struct ModelCollector(watch::Receiver<Arc<Fleet>>);

/// The live workers of a model together.
#[derive(Debug, Default)]
struct ModelLoad {
    running: u64,
    waiting: u64,
    blocks: u64,
    free_blocks: u64,
    block_size: u32,
}

impl ModelLoad {
    fn add(&mut self, load: &Load, block_size: u32) {
        self.running += u64::from(load.running);
        self.waiting += u64::from(load.waiting);
        self.blocks += u64::from(load.total_kv_blocks);
        self.free_blocks += u64::from(load.free_kv_blocks);
        self.block_size = block_size;
    }

    fn usage(&self) -> f64 {
        self.blocks.saturating_sub(self.free_blocks) as f64 / self.blocks.max(1) as f64
    }
}

impl Collector for ModelCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let fleet = Arc::clone(&self.0.borrow());
        let mut models = BTreeMap::<&str, ModelLoad>::new();
        for worker in fleet.live() {
            let block_size = worker.info.capacity.as_ref().map_or(0, |c| c.kv_block_size);
            models.entry(&worker.info.model).or_default().add(&worker.load(), block_size);
        }
        let label = |model: &str| -> ModelLabel { [(label::MODEL, model.into())] };
        let running = Family::<ModelLabel, Gauge>::default();
        let waiting = Family::<ModelLabel, Gauge>::default();
        let usage = Family::<ModelLabel, Gauge<f64, AtomicU64>>::default();
        let config = Family::<[(&'static str, String); 3], Gauge>::default();
        for (model, load) in &models {
            let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            running.get_or_create(&label(model)).set(count(load.running));
            waiting.get_or_create(&label(model)).set(count(load.waiting));
            usage.get_or_create(&label(model)).set(load.usage());
            let labels = [
                (label::MODEL, (*model).to_owned()),
                (label::BLOCK_SIZE, load.block_size.to_string()),
                (label::NUM_BLOCKS, load.blocks.to_string()),
            ];
            config.get_or_create(&labels).set(1);
        }
        names::RUNNING.encode(&mut encoder, &running)?;
        names::WAITING.encode(&mut encoder, &waiting)?;
        names::KV_USAGE.encode(&mut encoder, &usage)?;
        names::CACHE_CONFIG.encode(&mut encoder, &config)
    }
}

/// Reads the memory held by requests at every scrape.
#[derive(Debug)]
struct MemoryCollector(MemoryBudget);

impl Collector for MemoryCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let held = Gauge::<i64>::default();
        held.set(i64::try_from(self.0.reserved()).unwrap_or(i64::MAX));
        names::REQUEST_MEMORY.encode(&mut encoder, &held)
    }
}

//! A worker that answered, and what it said about itself.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use stoker_proto::v1::{Load, ModelInfo};
use stoker_shared::{ServiceError, discovery::WorkerId};
use tonic::transport::Channel;

use super::{health::Health, liveness::Liveness, reservation::Outstanding};
use crate::ewma::Ewma;

/// Tells one connection to a worker from every other: what the worker had in its cache before, it may have
/// lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Serial(pub(crate) u32);

/// Identifies a worker's process, wherever it is found and whatever it is called. A worker of an earlier release has
/// the name under which it is found.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct InstanceId(Arc<str>);

impl InstanceId {
    fn of(id: &WorkerId, info: &ModelInfo) -> Self {
        let text = match info.instance_id.as_str() {
            "" => id.as_str(),
            instance => instance,
        };
        Self(text.into())
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A worker during one connection.
#[derive(Debug)]
pub(crate) struct Worker {
    /// The name under which it is found, for people.
    pub(crate) id: WorkerId,
    pub(crate) instance: InstanceId,
    pub(crate) serial: Serial,
    pub(crate) channel: Channel,
    pub(crate) info: ModelInfo,
    pub(crate) outstanding: Arc<Outstanding>,
    pub(crate) liveness: Arc<Liveness>,
    pub(crate) health: Arc<Health>,
    /// The part of the prefixes expected in its cache that really was there, from 0 to 1.
    pub(crate) prefix_hit_rate: Ewma,
    /// Tokens that went through its cache for this router: prompts to compute, and answers.
    sent: AtomicU64,
    reported: Mutex<Reported>,
    /// Its refusal of this router has been logged.
    refused_routing: AtomicBool,
}

/// What a worker said, and what this router had under way there by then.
#[derive(Debug, Clone, Copy, Default)]
struct Reported {
    load: Load,
    prompt_tokens: u64,
    sequences: u64,
}

/// What a worker has to do for others, as of its last report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Others {
    /// Prompt tokens to read.
    pub(crate) prompt_tokens: u64,
    /// Continuations that have not ended.
    pub(crate) sequences: u64,
}

impl Worker {
    pub(crate) fn new(
        id: WorkerId,
        channel: Channel,
        info: ModelInfo,
        outstanding: Arc<Outstanding>,
        liveness: Arc<Liveness>,
        health: Arc<Health>,
    ) -> Self {
        static CONNECTIONS: AtomicU32 = AtomicU32::new(0);
        Self {
            instance: InstanceId::of(&id, &info),
            id,
            serial: Serial(CONNECTIONS.fetch_add(1, Ordering::Relaxed)),
            channel,
            info,
            outstanding,
            liveness,
            health,
            prefix_hit_rate: Ewma::with_initial(1.0),
            sent: AtomicU64::new(0),
            reported: Mutex::default(),
            refused_routing: AtomicBool::new(false),
        }
    }

    /// It refused this router's `routing`, because of `why`. Its operator can change that, and no client.
    pub(crate) fn refuses_routing(&self, why: &str) -> ServiceError {
        let worker = &self.id;
        if !self.refused_routing.swap(true, Ordering::Relaxed) {
            tracing::error!(%worker, why, "a worker refuses this router: start the worker with --accept-routing any");
        }
        ServiceError::unavailable(format!("worker {worker} does not accept calls of this router"))
    }

    /// What the worker last said about itself.
    pub(crate) fn load(&self) -> Load {
        self.reported().load
    }

    pub(crate) fn set_load(&self, load: Load) {
        let reported = Reported {
            load,
            prompt_tokens: self.outstanding.prompt_tokens(),
            sequences: self.outstanding.sequences(),
        };
        *self.reported.lock().unwrap_or_else(PoisonError::into_inner) = reported;
    }

    fn reported(&self) -> Reported {
        *self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it has to do for others: other routers, and clients that call it directly. What this router had
    /// sent by the time of the report is not counted again; where the two disagree, the larger counts.
    pub(crate) fn others(&self) -> Others {
        let Reported { load, prompt_tokens, sequences } = self.reported();
        // Every sequence that decodes counts one token there.
        let prompts = load.queued_tokens.saturating_sub(load.running.into());
        let all = u64::from(load.running) + u64::from(load.waiting);
        Others {
            prompt_tokens: prompts.saturating_sub(prompt_tokens),
            sequences: all.saturating_sub(sequences),
        }
    }

    /// Tokens that its cache has room for beside what runs, as far as it is known.
    pub(crate) fn free_kv_tokens(&self) -> Option<u64> {
        let block = u64::from(self.info.capacity?.kv_block_size);
        let Reported { load, prompt_tokens, .. } = self.reported();
        let since = self.outstanding.prompt_tokens().saturating_sub(prompt_tokens);
        let free = u64::from(load.free_kv_blocks) * block;
        (block > 0 && load.total_kv_blocks > 0).then(|| free.saturating_sub(since))
    }

    /// Tokens that its cache holds, as far as it is known.
    pub(crate) fn kv_tokens(&self) -> Option<u64> {
        let capacity = self.info.capacity?;
        let tokens = u64::from(capacity.kv_blocks) * u64::from(capacity.kv_block_size);
        (tokens > 0).then_some(tokens)
    }

    /// Tokens that went through its cache for this router.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// So many more tokens go through its cache.
    pub(super) fn note_sent(&self, tokens: u64) {
        self.sent.fetch_add(tokens, Ordering::Relaxed);
    }

    /// Whether it can continue what a worker of `digest` began; every worker can where nothing has begun.
    pub(crate) fn fits(&self, digest: Option<&str>) -> bool {
        digest.is_none_or(|digest| self.info.digest == digest)
    }

    /// Tokens of the longest sequence that it can hold, prompt and response together; `u64::MAX` if it does not say.
    pub(crate) fn max_sequence_tokens(&self) -> u64 {
        let stated = self.info.capacity.map_or(0, |capacity| capacity.max_sequence_tokens);
        // Workers of earlier releases say it in the other field.
        match (stated, self.info.context_length) {
            (0, 0) => u64::MAX,
            (0, context) => context.into(),
            (room, _) => room.into(),
        }
    }

    /// Tokens of the longest sequence of its model; `u64::MAX` if it does not say.
    pub(crate) fn context(&self) -> u64 {
        match self.info.context_length {
            0 => u64::MAX,
            context => context.into(),
        }
    }

    /// Sequences in one batch; `u32::MAX` if it does not say.
    pub(crate) fn max_num_seqs(&self) -> u32 {
        match self.info.capacity.map_or(0, |capacity| capacity.max_num_seqs) {
            0 => u32::MAX,
            sequences => sequences,
        }
    }

    /// Whether to leave it alone for now. Cheap: the choice asks it of everybody whom it looks at.
    pub(crate) fn is_ejected(&self) -> bool {
        self.health.is_ejected()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use stoker_proto::v1::Capacity;
    use tonic::transport::Endpoint;

    use super::*;
    use crate::pool::reservation::Reservation;

    const DEFAULT: Capacity = Capacity {
        max_num_seqs: 0,
        max_num_batched_tokens: 0,
        kv_blocks: 0,
        kv_block_size: 0,
        max_num_queued_reqs: 0,
        max_sequence_tokens: 0,
    };

    /// A worker that nobody will call.
    pub(crate) fn worker(id: &str, model: &str, digest: &str) -> Arc<Worker> {
        let info = ModelInfo { model: model.into(), digest: digest.into(), ..Default::default() };
        of_info(id, info)
    }

    /// The same, of the model `m` with that capacity.
    pub(crate) fn of_capacity(id: &str, capacity: Capacity) -> Arc<Worker> {
        let capacity = Some(capacity);
        of_info(id, ModelInfo { model: "m".into(), capacity, ..Default::default() })
    }

    pub(crate) fn of_info(id: &str, info: ModelInfo) -> Arc<Worker> {
        let channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        Arc::new(Worker::new(
            WorkerId::new(id),
            channel,
            info,
            Arc::default(),
            Arc::default(),
            Arc::default(),
        ))
    }

    #[tokio::test]
    async fn what_this_router_sent_is_not_counted_twice() {
        let worker = worker("a", "m", "");
        let _before = Reservation::new(&worker, 1_000, vec![10, 10]);
        // Two sequences of ours wait; three of others decode and one waits with a prompt of 500.
        let load = Load { running: 3, waiting: 3, queued_tokens: 1_503, ..Default::default() };
        worker.set_load(load);
        let others = Others { prompt_tokens: 500, sequences: 4 };
        assert_eq!(worker.others(), others);
        let after = Reservation::new(&worker, 2_000, vec![10]);
        assert_eq!(worker.others(), others, "what came after the report is ours");
        drop(after);
        assert_eq!(worker.others(), others);
        worker.set_load(Load { running: 1, queued_tokens: 1, ..load });
        assert_eq!(worker.others(), Others { prompt_tokens: 0, sequences: 2 });
    }

    #[tokio::test]
    async fn room_is_what_was_reported_less_what_was_sent_since() {
        let load = Load { free_kv_blocks: 10, total_kv_blocks: 20, ..Default::default() };
        let worker = of_capacity("a", Capacity { kv_blocks: 20, kv_block_size: 16, ..DEFAULT });
        assert_eq!(worker.free_kv_tokens(), None, "nothing was reported");
        let _before = Reservation::new(&worker, 100, vec![10]);
        worker.set_load(load);
        assert_eq!((worker.free_kv_tokens(), worker.kv_tokens()), (Some(160), Some(320)));
        let _after = Reservation::new(&worker, 150, vec![10]);
        assert_eq!(worker.free_kv_tokens(), Some(10));
        let silent = of_capacity("b", DEFAULT);
        silent.set_load(load);
        assert_eq!((silent.free_kv_tokens(), silent.kv_tokens()), (None, None));
    }
}

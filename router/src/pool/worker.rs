//! A connected worker and its reported state.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use stoker_proto::v1::{Load, ModelInfo};
use stoker_shared::{ServiceError, discovery::WorkerId, validate};
use tonic::transport::Channel;

use super::{health::Health, liveness::Liveness, outstanding::Outstanding};
use crate::ewma::Ewma;

/// Number of a connection to a worker. A new connection gets a new one, since the worker may have
/// lost its cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Serial(pub(crate) u32);

/// Identity of a worker process, independent of its address and name. For a worker of an earlier
/// release, which sends no instance id, it is the name of the candidate.
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

    pub(super) fn as_str(&self) -> &str {
        &self.0
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
    /// Its id (`--worker-id`), for logs, errors, traces and metrics. For a worker of an earlier
    /// release, which sends none, the name of the candidate.
    pub(crate) id: WorkerId,
    pub(crate) instance: InstanceId,
    pub(crate) serial: Serial,
    pub(crate) channel: Channel,
    pub(crate) info: ModelInfo,
    pub(crate) outstanding: Arc<Outstanding>,
    pub(crate) liveness: Arc<Liveness>,
    pub(crate) health: Arc<Health>,
    /// Fraction of the prefixes expected in its cache that was cached, from 0 to 1.
    pub(crate) prefix_hit_rate: Ewma,
    /// Tokens that this router added to its KV cache: prefilled and generated ones.
    sent: AtomicU64,
    reported: Mutex<ReportedLoad>,
    /// Whether its refusal of this router has been logged.
    refused_routing: AtomicBool,
}

/// The last load report of a worker, and the outstanding work of this router at that time.
#[derive(Debug, Clone, Copy, Default)]
struct ReportedLoad {
    load: Load,
    prompt_tokens: u64,
    sequences: u64,
}

/// Work of a worker for other clients, as of its last report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExternalLoad {
    /// Tokens to prefill.
    pub(crate) prompt_tokens: u64,
    /// Number of unfinished sequences.
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
        let instance = InstanceId::of(&id, &info);
        let named = validate::name(&info.worker).is_ok();
        Self {
            instance,
            id: if named { WorkerId::new(info.worker.as_str()) } else { id },
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

    /// Returns the error for a worker that refuses this router's `routing` because of `why`, and
    /// logs it once. Only the operator of the worker can change that, so it is not the client's
    /// error.
    pub(crate) fn refuses_routing(&self, why: &str) -> ServiceError {
        let worker = &self.id;
        if !self.refused_routing.swap(true, Ordering::Relaxed) {
            tracing::error!(
                %worker,
                why,
                "the worker refuses the routing of this router; start it with --accept-routing any"
            );
        }
        ServiceError::unavailable(format!("worker {worker} does not accept calls of this router"))
    }

    /// Returns the last load report.
    pub(crate) fn load(&self) -> Load {
        self.reported().load
    }

    pub(crate) fn set_load(&self, load: Load) {
        let reported = ReportedLoad {
            load,
            prompt_tokens: self.outstanding.prompt_tokens(),
            sequences: self.outstanding.sequences(),
        };
        *self.reported.lock().unwrap_or_else(PoisonError::into_inner) = reported;
    }

    fn reported(&self) -> ReportedLoad {
        *self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the work for other routers and for clients that call the worker directly: the
    /// reported load less the outstanding work of this router at the time of the report, at least
    /// 0.
    pub(crate) fn external_load(&self) -> ExternalLoad {
        let ReportedLoad { load, prompt_tokens, sequences } = self.reported();
        // The report counts one queued token per decoding sequence.
        let prompts = load.queued_tokens.saturating_sub(load.running.into());
        let all = u64::from(load.running) + u64::from(load.waiting);
        ExternalLoad {
            prompt_tokens: prompts.saturating_sub(prompt_tokens),
            sequences: all.saturating_sub(sequences),
        }
    }

    /// Returns the free tokens of its KV cache, if reported.
    pub(crate) fn free_kv_tokens(&self) -> Option<u64> {
        let block = u64::from(self.info.capacity?.kv_block_size);
        let ReportedLoad { load, prompt_tokens, .. } = self.reported();
        let since = self.outstanding.prompt_tokens().saturating_sub(prompt_tokens);
        let free = u64::from(load.free_kv_blocks) * block;
        (block > 0 && load.total_kv_blocks > 0).then(|| free.saturating_sub(since))
    }

    /// Returns the size of its KV cache in tokens, if reported.
    pub(crate) fn kv_tokens(&self) -> Option<u64> {
        let capacity = self.info.capacity?;
        let tokens = u64::from(capacity.kv_blocks) * u64::from(capacity.kv_block_size);
        (tokens > 0).then_some(tokens)
    }

    /// Returns the tokens that this router added to its KV cache.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Adds to the tokens that this router added to its KV cache.
    pub(super) fn add_sent(&self, tokens: u64) {
        self.sent.fetch_add(tokens, Ordering::Relaxed);
    }

    /// Whether it can resume a response of a worker of `digest`; `None` fits every worker.
    pub(crate) fn fits(&self, digest: Option<&str>) -> bool {
        digest.is_none_or(|digest| self.info.digest == digest)
    }

    /// Returns the tokens of the longest sequence that it can hold, prompt and completion together;
    /// `u64::MAX` if not reported.
    pub(crate) fn max_sequence_tokens(&self) -> u64 {
        let stated = self.info.capacity.map_or(0, |capacity| capacity.max_sequence_tokens);
        // Workers of earlier releases report only the context length.
        match (stated, self.info.context_length) {
            (0, 0) => u64::MAX,
            (0, context) => context.into(),
            (tokens, _) => tokens.into(),
        }
    }

    /// Returns the context length of its model; `u64::MAX` if not reported.
    pub(crate) fn context(&self) -> u64 {
        match self.info.context_length {
            0 => u64::MAX,
            context => context.into(),
        }
    }

    /// Returns the maximum number of sequences in a batch; `u32::MAX` if not reported.
    pub(crate) fn max_num_seqs(&self) -> u32 {
        match self.info.capacity.map_or(0, |capacity| capacity.max_num_seqs) {
            0 => u32::MAX,
            sequences => sequences,
        }
    }

    /// Whether it gets no requests for now. Cheap, since worker selection calls it for every
    /// worker.
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

    /// A worker that is never called.
    pub(crate) fn worker(id: &str, model: &str, digest: &str) -> Arc<Worker> {
        let info = ModelInfo { model: model.into(), digest: digest.into(), ..Default::default() };
        of_info(id, info)
    }

    /// A worker of the model `m` with that capacity.
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
    async fn outstanding_work_of_this_router_is_not_counted_twice() {
        let worker = worker("a", "m", "");
        let _before = Reservation::new(&worker, 1_000, vec![10, 10]);
        // Two sequences of this router wait. Of other clients, three decode and one waits with a
        // prompt of 500.
        let load = Load { running: 3, waiting: 3, queued_tokens: 1_503, ..Default::default() };
        worker.set_load(load);
        let external = ExternalLoad { prompt_tokens: 500, sequences: 4 };
        assert_eq!(worker.external_load(), external);
        let after = Reservation::new(&worker, 2_000, vec![10]);
        assert_eq!(worker.external_load(), external, "sent after the report, by this router");
        drop(after);
        assert_eq!(worker.external_load(), external);
        worker.set_load(Load { running: 1, queued_tokens: 1, ..load });
        assert_eq!(worker.external_load(), ExternalLoad { prompt_tokens: 0, sequences: 2 });
    }

    #[tokio::test]
    async fn free_tokens_are_the_reported_ones_less_those_sent_since() {
        let load = Load { free_kv_blocks: 10, total_kv_blocks: 20, ..Default::default() };
        let worker = of_capacity("a", Capacity { kv_blocks: 20, kv_block_size: 16, ..DEFAULT });
        assert_eq!(worker.free_kv_tokens(), None, "nothing reported");
        let _before = Reservation::new(&worker, 100, vec![10]);
        worker.set_load(load);
        assert_eq!((worker.free_kv_tokens(), worker.kv_tokens()), (Some(160), Some(320)));
        let _after = Reservation::new(&worker, 150, vec![10]);
        assert_eq!(worker.free_kv_tokens(), Some(10));
        let unspecified = of_capacity("b", DEFAULT);
        unspecified.set_load(load);
        assert_eq!((unspecified.free_kv_tokens(), unspecified.kv_tokens()), (None, None));
    }
}
